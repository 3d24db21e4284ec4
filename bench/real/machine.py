"""How busy the machine is, from ``/proc/stat``: whether something else disturbed a run."""

import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Busy:
    """CPU seconds since the machine started: of all its processes, and taken away by its host."""

    used_s: float
    stolen_s: float

    def since(self, before: "Busy") -> "Busy":
        """What was used in between."""
        return Busy(self.used_s - before.used_s, self.stolen_s - before.stolen_s)


def busy() -> Busy:
    """Of all cores together."""
    user, nice, system, _idle, _wait, irq, softirq, steal = (
        int(one) / TICKS_PER_S for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return Busy(user + nice + system + irq + softirq, steal)
