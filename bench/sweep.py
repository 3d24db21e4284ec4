"""``python -m bench.sweep``: all studies of the published results, as raw files, several at a time.

A study is one scenario under one arrival process on one preset with all systems: ``python -m bench.capacity`` with
``--out`` in a process of its own. Files that are there and that the same code made are kept, so a sweep may be stopped
(its studies end with it) and started again. The last line is one JSON object.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.ending import exit_on_signals
from bench.results import raw
from bench.workloads import SCENARIOS

ROOT = Path(__file__).parents[1]
ALL_SYSTEMS = "ours,vllm,vllm-spec,vllm-prefill-first,sarathi,disagg,slos-serve,bound"
WITHOUT_DRAFTS = "ours,vllm,vllm-prefill-first,sarathi,disagg,slos-serve,bound"
"""Not ``edf``: under overload it takes a hundred times as long as the others; ask for it by ``--systems``."""
LONGER = {"reasoning": 3.0}
"""Runs of these scenarios last so many times longer, as their requests do."""


@dataclass(frozen=True, slots=True)
class Part:
    """Studies that are asked for together, one for each of the six scenarios."""

    preset: str
    arrivals: str
    systems: str

    def options(self, trace: Path | None, start_s: float) -> list[str]:
        """What ``bench.capacity`` is told about engines, arrivals and systems (which come last)."""
        replayed: list[str] = []
        if self.arrivals == "trace" and trace is not None:
            replayed = ["--trace", str(trace.resolve()), "--trace-start-s", f"{start_s:g}"]
        return ["--preset", self.preset, "--arrivals", self.arrivals, *replayed, "--systems", self.systems]


PARTS: Mapping[str, Part] = {
    "opt-poisson": Part("opt-13b-tp2-a100", "poisson", ALL_SYSTEMS),
    "opt-bursty": Part("opt-13b-tp2-a100", "bursty", ALL_SYSTEMS),
    "opt-phased": Part("opt-13b-tp2-a100", "phased", ALL_SYSTEMS),
    "opt-trace": Part("opt-13b-tp2-a100", "trace", ALL_SYSTEMS),
    "qwen-poisson": Part("qwen2.5-7b-h100", "poisson", WITHOUT_DRAFTS),
    "qwen-bursty": Part("qwen2.5-7b-h100", "bursty", WITHOUT_DRAFTS),
}


@dataclass(frozen=True, slots=True)
class Task:
    """One study and its raw file."""

    name: str
    path: Path
    arguments: tuple[str, ...]

    def run(self, studies: "Studies") -> float:
        """Run it; returns the seconds it took. Raises RuntimeError with the end of what it said."""
        started_s = time.monotonic()
        with tempfile.TemporaryFile() as said:
            if studies.run([sys.executable, "-m", "bench.capacity", *self.arguments, "--json"], said):
                said.seek(0)
                raise RuntimeError(f"{self.name}: {said.read().decode(errors='replace')[-2000:]}")
        return time.monotonic() - started_s


@dataclass
class Studies:
    """Processes that run, each the first of a group with those that it starts; a context at whose end they end."""

    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False
    lock: Lock = field(default_factory=Lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, command: Sequence[str], said: IO[bytes]) -> int:
        """Run to the end, errors into ``said``; returns the exit status."""
        one_core = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        with self.lock:
            if self.stopped:
                return 1
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | one_core, stdout=subprocess.DEVNULL, stderr=said,
                start_new_session=True,
            )  # fmt: skip
            self.running.add(process)
        status = process.wait()
        self.running.discard(process)
        return status

    def stop(self) -> None:
        """End them all; no other starts."""
        with self.lock:
            self.stopped = True
            for process in list(self.running):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    parser.add_argument("--parts", default="all", help=f"comma-separated, or all: {', '.join(PARTS)}")
    parser.add_argument("--scenarios", default="all", help=f"comma-separated, or all: {', '.join(SCENARIOS)}")
    parser.add_argument("--systems", help="these instead of all")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "results", help="where raw files go")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="replay these arrivals (Azure CSV), not their like")
    parser.add_argument("--trace-start-s", type=float, default=0.0, help="where in it to begin")
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="how long requests arrive for; reasoning: three times"
    )
    parser.add_argument("--tune-seconds", type=float, default=40.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--curve", type=int, default=5, help="rates at which all systems are compared; 0 for none")
    parser.add_argument("--jobs", type=int, default=2, help="studies at a time")
    parser.add_argument("--force", action="store_true", help="run again what is there already")
    parser.add_argument("--list", action="store_true", help="say what would be run, and stop")
    return parser


def tasks(args: argparse.Namespace) -> Iterator[Task]:
    """All studies; the longest first, so that processes end together. Raises KeyError for an unknown name."""
    scenarios = list(SCENARIOS) if args.scenarios == "all" else args.scenarios.split(",")
    parts = list(PARTS) if args.parts == "all" else args.parts.split(",")
    for scenario in sorted(
        scenarios, key=lambda name: (name not in ("reasoning", "tool"), list(SCENARIOS).index(name))
    ):
        for name in parts:
            yield _task(args, scenario, name, PARTS[name])


def _task(args: argparse.Namespace, scenario: str, name: str, part: Part) -> Task:
    path = args.folder / f"sim-{name}-{scenario}.json"
    options = part.options(args.trace, args.trace_start_s)
    if args.systems:
        options[-1] = args.systems
    sizes = ("seconds", "tune_seconds", "seeds", "workers", "curve")
    values = {size: getattr(args, size) for size in sizes}
    for size in ("seconds", "tune_seconds"):
        values[size] *= LONGER.get(scenario, 1.0)
    numbers = [text for size, value in values.items() for text in (f"--{size.replace('_', '-')}", f"{value:g}")]
    return Task(f"{name} {scenario}", path, ("--scenario", scenario, *options, *numbers, "--out", str(path)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser()
    args = arguments.parse_args(argv)
    try:
        wanted = list(tasks(args))
    except (KeyError, ValueError) as error:
        arguments.error(f"unknown: {error}")
    todo = [task for task in wanted if args.force or not raw.up_to_date(task.path)]
    if args.list:
        for task in todo:
            print(f"python -m bench.capacity {' '.join(task.arguments)}")
        return 0
    started_s = time.monotonic()
    exit_on_signals()
    failed = run(todo, args.jobs)
    for reason in failed:
        print(reason, file=sys.stderr)
    took_s = round(time.monotonic() - started_s, 1)
    print(json.dumps({"studies": len(todo), "kept": len(wanted) - len(todo), "failed": len(failed), "seconds": took_s}))
    return 1 if failed else 0


def run(todo: Sequence[Task], jobs: int) -> list[str]:
    """Run all; returns what went wrong with those that failed."""
    columns = (
        TextColumn("studies"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )  # fmt: skip
    failed = []
    # The studies end before their threads are waited for, whenever a signal comes.
    with (
        ThreadPoolExecutor(jobs) as pool,
        Studies() as studies,
        Progress(*columns, console=Console(file=sys.stderr)) as progress,
    ):
        shown = progress.add_task("studies", total=len(todo), last="")
        running = {pool.submit(task.run, studies): task for task in todo}
        for done in _as_they_end(running):
            try:
                last = f"{running[done].name}: {done.result():.0f} s"
            except RuntimeError as error:
                failed.append(str(error))
                last = f"{running[done].name} failed"
            progress.update(shown, advance=1, last=last)
    return failed


def _as_they_end(running: Iterable[Future[float]]) -> Iterator[Future[float]]:
    """Like ``as_completed``, but wakes up now and then: Python can miss a signal that comes just before a wait."""
    left = set(running)
    while left:
        ended, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
        yield from ended


if __name__ == "__main__":
    sys.exit(main())
