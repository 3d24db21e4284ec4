"""Which CPUs an engine computes on.

Engines that share a machine and float now and then run on one CPU while another idles: two of them on two CPUs,
each 85 % busy, attained 0.74 to 0.89 of the SLOs of a load of which they attained 0.93 to 0.96 with a CPU each.
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
