import os
import platform
from pathlib import Path

from common.engine.machine import cpu


def test_a_cpu_is_called_by_its_model_and_count(tmp_path: Path) -> None:
    (tmp_path / "info").write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nprocessor\t: 1\nmodel name\t: Other\n"
    )
    assert cpu(tmp_path / "info") == f"Some CPU @ 2 GHz x{os.cpu_count()}"


def test_a_cpu_that_has_no_model_is_called_by_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "info").write_text("processor\t: 0\n")
    for file in ("info", "none"):
        assert cpu(tmp_path / file) == f"{platform.processor() or platform.machine()} x{os.cpu_count()}"
