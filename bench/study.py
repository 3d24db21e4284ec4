"""Many cases to their capacities: tuning, bisection by seed, one after the other or in several processes."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.case import Case, Mode
from bench.metrics import Report
from bench.search import geometric, highest, race

TUNING_SEED = 70_001
RACE_STEP = 1.15
RACE_START = 0.5
"""Tuning begins at this share of the rate at which the first candidate's capacity is expected."""


@dataclass(frozen=True, slots=True)
class Found:
    """A case's capacities by seed (the rate asked for where there was one), and the report of each at that rate."""

    case: Case
    rates: tuple[float, ...]
    reports: tuple[Report, ...]
    runs: int

    def as_json(self, workers: int) -> dict[str, Any]:
        """Means over seeds; ``report`` is of the first seed."""
        estimate = geometric([rate / workers for rate in self.rates])
        tuning = getattr(self.case.options, "tuning", "")
        return {
            "capacity": estimate.mean,
            "by_seed": [rate / workers for rate in self.rates],
            "attainment": fmean(report.attainment for report in self.reports),
            "deferred_ttft_over_slo_p99": _worst(self.reports),
            "tuning": str(tuning),
            "runs": self.runs,
            "report": self.reports[0].as_json(),
        }


def _worst(reports: Sequence[Report]) -> float | None:
    worst = max(report.deferred_ttft_over_slo_p99 for report in reports)
    return worst if worst != float("inf") else None


@dataclass(frozen=True, slots=True)
class Study:
    """``attainment`` is what capacity asks for; ``tune_s`` how long the runs are that tuning is done on."""

    mode: Mode
    attainment: float = 0.9
    tune_s: float = 120.0
    jobs: int = 1

    def run(self, cases: Sequence[Case], seeds: Sequence[int], rate: float | None = None) -> list[Found]:
        """Capacities of all cases, or their reports at one rate."""
        with self._executor() as executor, self._progress() as progress:
            task = progress.add_task("tuning", total=len(cases) * (1 + len(seeds)), detail="")

            def watched(work: "Future[Any]") -> "Future[Any]":
                work.add_done_callback(lambda _: progress.advance(task))
                return work

            def submit(function: Any, *arguments: Any) -> Any:
                progress.update(task, detail=_named(arguments[1]))
                return watched(executor.submit(function, *arguments))

            tuned = [one.result() for one in [submit(tune, self, case) for case in cases]]
            progress.update(task, description="measuring")
            jobs = [[submit(measure, self, case.at(rate or 1.0, seed), rate) for seed in seeds] for case in tuned]
            measured = [[one.result() for one in by_seed] for by_seed in jobs]
        return [_found(case, by_seed) for case, by_seed in zip(tuned, measured, strict=True)]

    @contextmanager
    def _executor(self) -> "Iterator[Executor | _Inline]":
        if self.jobs <= 1 or not self.mode.parallel:
            yield _Inline()
            return
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            yield pool

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[detail]}"),
        )  # fmt: skip
        return Progress(*columns, console=Console(file=sys.stderr))


class _Inline:
    """An executor of this process."""

    def submit(self, function: Any, *arguments: Any) -> "Future[Any]":
        """Run at once."""
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def _named(case: Case) -> str:
    return f"{case.spec.scenario} {case.system}"


def _found(case: Case, by_seed: Sequence[tuple[float, Report, int]]) -> Found:
    rates, reports = tuple(rate for rate, _, _ in by_seed), tuple(report for _, report, _ in by_seed)
    return Found(case, rates, reports, sum(runs for _, _, runs in by_seed))


def tune(study: Study, case: Case) -> Case:
    """The case with the best of its system's options, on a seed of their own."""
    candidates = study.mode.tunings(case)
    if len(candidates) == 1:
        return replace(case, options=candidates[0])
    seconds = min(study.tune_s, case.spec.seconds)
    tuning = replace(case, spec=replace(case.spec, seconds=seconds)).at(1.0, TUNING_SEED)

    def score(options: Any, rate: float) -> float:
        return study.mode.run(replace(tuning, options=options).at(rate)).attainment

    start = study.mode.start_rate(case) * RACE_START
    for _ in range(6):  # the race must begin where somebody holds
        if score(candidates[0], start) >= study.attainment:
            break
        start /= 2
    return replace(case, options=race(candidates, score, study.attainment, start, RACE_STEP))


def measure(study: Study, case: Case, rate: float | None) -> tuple[float, Report, int]:
    """Capacity of one seed with the report there, and how many runs it took."""
    reports: dict[float, Report] = {}

    def at(rate: float) -> Report:
        if rate not in reports:
            reports[rate] = study.mode.run(case.at(rate))
        return reports[rate]

    if rate is not None:
        return rate, at(rate), 1

    def holds(rate: float) -> bool:
        found = at(rate)
        return found.attainment >= study.attainment and found.stationary

    capacity = highest(holds, study.mode.start_rate(case))
    return capacity, at(capacity or min(reports)), len(reports)
