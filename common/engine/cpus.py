"""Which CPUs an engine computes on.

Two engines that floated on two CPUs, each 85 % busy, had spells of steps 1.7 times as long as on an idle machine, as if
they shared one; they attained 0.74 and 0.89 of the SLOs of a load, with a CPU each 0.93 and 0.96 (docs/decisions.md).
"""

import os
from collections.abc import Collection, Sequence

from common.errors import EngineError

PATTERN = r"^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$"
"""Of a list as Linux writes it: ``0,2-3``."""


def parse(text: str) -> tuple[int, ...]:
    """The CPUs of a list that matches :data:`PATTERN`, ascending; raises EngineError where there is none."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise EngineError(f"engine_cpus names no CPU: {text}")
    return tuple(sorted(found))


def share(cpus: Sequence[int], index: int, engines: int, threads: int) -> tuple[int, ...]:
    """The CPUs of one of several engines that compute with so many threads each; none if there are too few."""
    return tuple(cpus[index * threads : (index + 1) * threads]) if engines * threads <= len(cpus) else ()


def keep_to(cpus: Collection[int]) -> None:
    """Compute on these only, in this thread and those that it will start; raises EngineError if none is usable."""
    if not cpus or not hasattr(os, "sched_setaffinity"):
        return
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise EngineError(f"engine_cpus names no CPU that this process may use: {sorted(cpus)}") from error
