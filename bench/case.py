"""One measurement: a system, a workload and a rate. Simulated and real runs are asked for in the same way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bench.metrics import Report
from bench.workloads import Item, WorkloadSpec, generate, read_workload, scale_lengths, scale_rate
from bench.workloads.scale import rate_of

WORKLOAD = "workload"
"""Name of the scenario where a workload file is given."""


@dataclass(frozen=True, slots=True)
class Case:
    """What to run. ``spec.scenario`` is not looked at where there is a ``workload`` file, whose times are scaled.

    ``options`` are of the mode and the system, and can be pickled.
    """

    system: str
    spec: WorkloadSpec
    preset: str
    workers: int
    tpot_scale: float = 1.0
    workload: Path | None = None
    options: Any = None

    def at(self, rate: float, seed: int | None = None) -> "Case":
        """The same at another rate, and with another seed."""
        return replace(self, spec=replace(self.spec, rate=rate, seed=self.spec.seed if seed is None else seed))

    def items(self) -> list[Item]:
        """The workload at the case's rate."""
        if self.workload is None:
            return generate(self.spec)
        items = scale_lengths(read_workload(self.workload), self.spec.length_scale)
        return scale_rate(items, self.spec.rate / rate_of(items))


class Mode(Protocol):
    """Called by the capacity search, from several processes at once where ``parallel``; holds no state."""

    parallel: bool

    def run(self, case: Case) -> Report:
        """One run of the case; the same case gives the same report as far as the engines do."""

    def tunings(self, case: Case) -> list[Any]:
        """Options to try for this system, the first without any tuning; several only where something is tuned."""

    def start_rate(self, case: Case) -> float:
        """A rate that can be expected to be of the right order."""

    def described(self) -> dict[str, Any]:
        """What must be said beside a figure, for the JSON object."""

    def close(self) -> None:
        """Stop whatever was started for runs."""


Run = Callable[[Case], Report]
