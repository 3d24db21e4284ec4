"""What an engine computes on, by a name that containers made anew and nodes of one kind share."""

import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpu(cpuinfo: Path = _CPUINFO) -> str:
    """The CPU's model as Linux tells it, else its architecture, and how many there are."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    told = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(told, '') or platform.processor() or platform.machine()} x{os.cpu_count()}"
