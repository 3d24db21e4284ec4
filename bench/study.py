"""Many cases to their capacities: tuning, bisection by seed, one after the other or in several processes."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.case import Case, Mode
from bench.metrics import Report
from bench.saying import say
from bench.search import PRECISION, geometric, highest, race

TUNING_SEED = 70_001
RACE_STEP = 1.15
RACE_START = 0.5
"""Tuning begins at this share of the rate at which the first candidate's capacity is expected."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One seed: its capacity (the rate asked for where there was one), and reports by every rate that was run."""

    rate: float
    reports: Mapping[float, Report]

    @property
    def report(self) -> Report:
        """At the capacity, or the lowest rate where none was found."""
        return self.reports[self.rate or min(self.reports)]


@dataclass(frozen=True, slots=True)
class Found:
    """A case's capacities by seed."""

    case: Case
    seeds: Mapping[int, Measured]

    @property
    def rates(self) -> tuple[float, ...]:
        """Capacities by seed, in requests per second of all workers."""
        return tuple(one.rate for one in self.seeds.values())

    @property
    def reports(self) -> tuple[Report, ...]:
        """At these rates."""
        return tuple(one.report for one in self.seeds.values())

    def points(self, workers: int) -> list[dict[str, Any]]:
        """What each run came to, by rate (requests per second and engine) and seed."""
        return sorted(
            (
                point(rate / workers, seed, report)
                for seed, one in self.seeds.items()
                for rate, report in one.reports.items()
            ),
            key=lambda one: (one["rate"], one["seed"]),
        )

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
            "runs": sum(len(one.reports) for one in self.seeds.values()),
            "report": self.reports[0].as_json(),
        }


def point(rate: float, seed: int, report: Report) -> dict[str, Any]:
    """One point of attainment over rate."""
    return {
        "rate": round(rate, 5),
        "seed": seed,
        "attainment": round(report.attainment, 5),
        "attainment_strict": round(report.attainment_strict, 5),
        "stationary": report.stationary,
        "requests": report.requests,
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
    precision: float = PRECISION

    def run(self, cases: Sequence[Case], seeds: Sequence[int], rate: float | None = None) -> list[Found]:
        """Capacities of all cases, or their reports at one rate."""
        with self._executor() as executor, self._progress() as progress:
            task = progress.add_task("tuning", total=len(cases) * (1 + len(seeds)), detail="")

            def submit(function: Any, *arguments: Any) -> Any:
                named = _named(arguments[1])

                def done(_: "Future[Any]") -> None:
                    progress.advance(task)
                    if not progress.console.is_terminal:  # where nothing can be drawn, a line for each
                        say(_told(progress.tasks[task], named))

                progress.update(task, detail=named)
                work = executor.submit(function, *arguments)
                work.add_done_callback(done)
                return work

            tuned = [one.result() for one in [submit(tune, self, case) for case in cases]]
            progress.update(task, description="measuring")
            first, *others = seeds
            begun = [submit(measure, self, case.at(rate or 1.0, first), rate) for case in tuned]
            found = [one.result() for one in begun]
            jobs = [  # seed by seed: what a machine does to all runs of an hour, it should do to all systems
                [
                    submit(measure, self, case.at(rate or 1.0, seed), rate, one.rate)
                    for case, one in zip(tuned, found, strict=True)
                ]
                for seed in others
            ]
            rounds = [found, *([job.result() for job in of_seed] for of_seed in jobs)]
            measured = list(zip(*rounds, strict=True))
        return [
            Found(case, dict(zip(seeds, by_seed, strict=True))) for case, by_seed in zip(tuned, measured, strict=True)
        ]

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
        """Run at once; what it raises ends the study, before another system runs for nothing."""
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


def _told(task: Task, done: str) -> str:
    left = "" if task.time_remaining is None else f", about {task.time_remaining:.0f} s left"
    return f"{task.description} {task.completed:.0f}/{task.total:.0f}: {done} after {task.elapsed or 0:.0f} s{left}"


def _named(case: Case) -> str:
    return f"{case.spec.scenario} {case.system}"


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


def measure(study: Study, case: Case, rate: float | None, expected: float = 0.0) -> Measured:
    """Capacity of one seed, or the report at ``rate``; the search begins where another seed's was ``expected``."""
    reports: dict[float, Report] = {}

    def at(rate: float) -> Report:
        if rate not in reports:
            reports[rate] = study.mode.run(case.at(rate))
        return reports[rate]

    if rate is not None:
        at(rate)
        return Measured(rate, reports)

    def holds(rate: float) -> bool:
        found = at(rate)
        return found.attainment >= study.attainment and found.stationary

    return Measured(highest(holds, expected or study.mode.start_rate(case), study.precision), reports)
