"""``--mode real``: a case becomes a run on real engines of this machine, and a report."""

import asyncio
import math
import os
import platform
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.case import Case
from bench.ending import exit_on_signals
from bench.engine_runs import random_model
from bench.metrics import Report, report
from bench.outcome import Outcome
from bench.real import logs
from bench.real.backends import Backend
from bench.real.calibration import SEQUENCES, Calibration, Objectives, load, objectives_for
from bench.real.chunks import CHUNKS, best_chunk
from bench.real.cpu import Usage, usage
from bench.real.load import DRAIN_S, Load, Sent, play, probe, spans_s, undisturbed
from bench.real.machine import Busy, busy
from bench.real.measuring import measure
from bench.real.systems import ENGINES, KINDS, Setup, System
from bench.saying import say
from bench.workloads import Arrivals, WorkloadSpec, generate
from common.bus.redis import RedisBus
from common.errors import WorkloadError
from common.latency_model import LatencyModel
from common.settings import Settings

WARM_UP_S = 5.0
WARM_UP_SEED = 800_001
TUNING_SEED = 70_001
TUNING_RATES = (0.1, 0.3, 1.0, 3.0)
"""Of the rate asked for, or of a guess: where all budgets hold none is seen to be better, nor where none does."""
SAMPLE_SEED = 900_001
SAMPLE_S = 100.0
DECODE_TOGETHER = 8
"""Sequences that share a step in a first guess at capacity."""


@dataclass(frozen=True, slots=True)
class RealOptions:
    """Options of all real cases.

    ``stop_below`` ends a run as soon as its attainment is certain to stay below; None runs all to their end.
    ``chunk`` spares the sweep for ``vllm-tuned``. ``environment`` are settings of the product.
    """

    parameters: str = "50M"
    log_dir: Path | None = None
    cache_dir: Path = Path(".cache/bench")
    stop_below: float | None = None
    chunk: int | None = None
    tune_s: float = 120.0
    drain_s: float = DRAIN_S
    recalibrate: bool = False
    environment: tuple[tuple[str, str], ...] = ()


class RealMode:
    """See :class:`bench.case.Mode`; a system's processes live until another system is asked for, or :meth:`close`."""

    parallel = False

    def __init__(self, options: RealOptions | None = None) -> None:
        self.options = options or RealOptions()
        self.model = random_model(self.options.parameters)
        self._stack = ExitStack()
        if threading.current_thread() is threading.main_thread():  # what was started ends with this process
            exit_on_signals()
        self._runner = self._stack.enter_context(asyncio.Runner())
        self._folder = self._logs_folder()
        self._running: tuple[Setup, System, AbstractAsyncContextManager[System]] | None = None
        self._calibration: Calibration | None = None
        self._held: dict[tuple[str, str], float] = {}
        self._chunks: dict[str, int] = {}
        self._steps: dict[str, float] = {}
        self._set_aside: list[dict[str, Any]] = []

    def _logs_folder(self) -> Path:
        if self.options.log_dir is not None:
            return self.options.log_dir
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory()))

    def close(self) -> None:
        """Stop what runs."""
        self._stop()
        self._stack.close()

    def run(self, case: Case) -> Report:
        """Run, log every request, and report. Raises RuntimeError if a system does not start."""
        if case.workers != ENGINES:
            raise WorkloadError(f"real runs have {ENGINES} engines, on the cores of this machine")
        return self._report(case, self.outcomes(case))

    def record(self, case: Case) -> list[Outcome]:
        """Run the case to its end, and say what became of each request."""
        return [one.outcome(self.promises(case)) for one in self.outcomes(case, to_its_end=True)]

    def outcomes(self, case: Case, to_its_end: bool = False) -> list[Sent]:
        """A run of a case, which may be ended early where ``stop_below`` says so."""
        items, objectives = case.items(), self.objectives(case)
        system = self._system(self.setup(case), objectives)
        most_lost = None
        if self.options.stop_below is not None and not to_its_end:
            most_lost = math.floor(len(items) * (1 - self.options.stop_below))
        load = Load(items, objectives.slos(items), case.spec.seed, self.options.drain_s, most_lost)

        def set_aside(sent: list[Sent], late_s: float) -> None:
            attained = self._figures(case, sent).attainment
            self._set_aside.append(
                {
                    "system": case.system,
                    "rate": case.spec.rate,
                    "seed": case.spec.seed,
                    "sent_late_s": round(late_s, 3),
                    "attained": round(attained, 5),
                }
            )

        sent = undisturbed(lambda: self._play(load, system), set_aside)
        logs.write(logs.path_for(self._folder, case), sent, system.backend.promises)
        return sent

    def _play(self, load: Load, system: System) -> list[Sent]:
        processes = {**system.processes, "client": os.getpid()}
        machine, before, begun_s = busy(), usage(processes), time.monotonic()
        sent = self._runner.run(play(load, system.backend))
        used = usage(processes).since(before)
        say(_cores(used, busy().since(machine), time.monotonic() - begun_s))
        self._runner.run(probe(system.backend))
        return sent

    def _figures(self, case: Case, sent: Sequence[Sent]) -> Report:
        promises = self.promises(case)
        return report([one.outcome(promises) for one in sent], spans_s(sent))

    def _report(self, case: Case, sent: Sequence[Sent]) -> Report:
        found = self._figures(case, sent)
        holds = found.attainment >= (self.options.stop_below or 0.9) and found.stationary
        if holds:
            key = (_workload(case), case.system)
            self._held[key] = max(case.spec.rate, self._held.get(key, 0.0))
        ttft, tpot = (" ".join(f"{1e3 * one:.0f}" for one in values) for values in (found.ttft_s, found.tpot_s))
        say(
            f"{_workload(case)} {case.system} {case.spec.rate:.2f}/s seed {case.spec.seed}: "
            f"attained {found.attainment:.3f} (met {found.met:.3f}, strict {found.attainment_strict:.3f}), "
            f"TTFT {ttft} ms, TPOT {tpot} ms, {'stationary' if found.stationary else 'growing'}, {len(sent)} requests"
        )
        return found

    def tunings(self, case: Case) -> list[Any]:
        """What is tuned here is tuned when it is first run, at a rate at which stock servers begin to fail."""
        return [case.options]

    def start_rate(self, case: Case) -> float:
        """The highest rate that has held for this workload, of this system or else of another; or a guess."""
        workload = _workload(case)
        if (workload, case.system) in self._held:
            return self._held[workload, case.system]
        others = [rate for (of, _), rate in self._held.items() if of == workload]
        return max(others) if others else self._guess(case)

    def _guess(self, case: Case) -> float:
        items = _sample(case).items()
        calibration = self.calibration()
        seconds = sum(
            calibration.zero_load_s(item.prompt_tokens) + item.output_tokens * self._step_s(case) / DECODE_TOGETHER
            for item in items
        ) / len(items)
        share = 0.8 if case.spec.arrivals is Arrivals.POISSON else 0.3
        return share * ENGINES / seconds

    def _step_s(self, case: Case) -> float:
        return self.objectives(case).step_s

    def objectives(self, case: Case) -> Objectives:
        """The SLOs of a case: those of its workload, whatever the rate and the seed."""
        found = objectives_for(self.calibration(), _sample(case).items(), case.tpot_scale)
        self._steps[_workload(case)] = found.step_s
        return found

    def promises(self, case: Case) -> bool:
        """Whether its system says which SLOs it will keep."""
        return self.setup(case).kind == "ours"

    def setup(self, case: Case) -> Setup:
        """What to start for a case."""
        if isinstance(case.options, Setup):
            return case.options
        if case.system == "ours":
            return Setup("ours", self.model, environment=self.options.environment)
        if case.system == "vllm":
            return Setup("vllm", self.model)
        if case.system == "disagg":
            return Setup("disagg", self.model)
        if case.system == "vllm-tuned":
            return Setup("vllm", self.model, self._chunk(case), "least-loaded")
        raise WorkloadError(f"{case.system} can't be run for real")

    def _chunk(self, case: Case) -> int:
        if self.options.chunk is not None:
            return self.options.chunk
        workload = _workload(case)
        if workload not in self._chunks:
            self._stop()
            rate = case.spec.rate if self.options.stop_below is None else self.start_rate(case)
            loads = [self._tuning_load(case, rate * times / ENGINES) for times in TUNING_RATES]
            self._chunks[workload] = self._runner.run(best_chunk(self.model, loads, CHUNKS, self._folder / "sweep"))
        return self._chunks[workload]

    def _tuning_load(self, case: Case, rate: float) -> Load:
        seconds = self.options.tune_s / len(TUNING_RATES)
        items = replace(case, spec=replace(case.spec, seconds=seconds)).at(rate, TUNING_SEED).items()
        return Load(items, self.objectives(case).slos(items), TUNING_SEED, drain_s=10.0)

    def engine_models(self) -> list[LatencyModel]:
        """What the workers of the product have learned of their engines by now; none if it does not run."""
        url = self._running[1].redis_url if self._running is not None else None
        return [] if url is None else self._runner.run(_engine_models(url))

    def _system(self, setup: Setup, objectives: Objectives) -> System:
        if self._running is not None and self._running[0] == setup:
            return self._running[1]
        self._stop()
        say(f"starting {setup.kind} {setup.tuning}")
        context = KINDS[setup.kind](setup, self._folder / setup.folder)
        system = self._runner.run(context.__aenter__())
        self._running = (setup, system, context)
        self._runner.run(self._warm_up(system.backend, objectives))
        return system

    async def _warm_up(self, backend: Backend, objectives: Objectives) -> None:
        await probe(backend)
        spec = WorkloadSpec("chatbot", 2.0 * ENGINES, WARM_UP_S, WARM_UP_SEED, length_scale=0.25)
        items = generate(spec)
        await play(Load(items, objectives.slos(items), WARM_UP_SEED), backend)
        await probe(backend)

    def _stop(self) -> None:
        if self._running is not None:
            _, _, context = self._running
            self._running = None
            self._runner.run(context.__aexit__(None, None, None))

    def calibration(self) -> Calibration:
        """Of this machine: from a file, or measured once and kept there."""
        if self._calibration is None:
            name = f"{Path(self.model).name}-{platform.node()}"
            path = self.options.cache_dir / f"calibration-{name}.json"
            self._calibration = None if self.options.recalibrate else _kept(path)
            if self._calibration is None:
                self._stop()
                say("measuring zero-load prefill and decode steps on a stock server")
                self._calibration = self._runner.run(_measured(self.model, self._folder))
                self._calibration.save(path)
            say(f"zero-load TTFT by prompt: {_shown(self._calibration.zero_load)}")
            say(f"step of {SEQUENCES} sequences by context: {_shown(self._calibration.step)}")
        return self._calibration

    def described(self) -> dict[str, Any]:
        """What a figure must say beside it; ``set_aside`` are runs that were repeated, as a request was sent late."""
        calibration = self.calibration()
        return {"machine": self._machine(calibration), "set_aside": self._set_aside}

    def _machine(self, calibration: Calibration) -> dict[str, Any]:
        return {
            "model": self.model,
            "tight_tpot_ms_by_workload": {name: 2e3 * step_s for name, step_s in self._steps.items()},
            "zero_load_ttft_ms": {str(tokens): 1e3 * s for tokens, s in calibration.zero_load},
            "step_ms": {str(context): 1e3 * s for context, s in calibration.step},
            "chunks": dict(self._chunks) if self.options.chunk is None else self.options.chunk,
        }


async def _engine_models(redis_url: str) -> list[LatencyModel]:
    async with RedisBus.connect(Settings(redis_url=redis_url)) as bus:
        return [state.latency for state in (await bus.workers()).values() if state is not None]


async def _measured(model: str, folder: Path) -> Calibration:
    async with KINDS["vllm"](Setup("vllm", model, replicas=1), folder / "calibration") as system:
        return await measure(system.backend)


def _kept(path: Path) -> Calibration | None:
    try:
        return load(path)
    except (OSError, ValueError, KeyError):
        return None


def _cores(used: Usage, machine: Busy, took_s: float) -> str:
    named = {"engines": used.engines_s, **used.outside_s}
    others = {"others": machine.used_s - used.engines_s - used.total_outside_s, "stolen": machine.stolen_s}
    return "cores used: " + ", ".join(f"{name} {one / took_s:.2f}" for name, one in (named | others).items())


def _shown(points: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{tokens}: {1e3 * s:.1f} ms" for tokens, s in points)


def _workload(case: Case) -> str:
    return str(case.workload) if case.workload is not None else f"{case.spec.scenario} {case.spec.arrivals}"


def _sample(case: Case) -> Case:
    """The workload whose mean lengths stand for the case's."""
    if case.workload is not None:
        return case
    spec = WorkloadSpec(
        case.spec.scenario, 4.0, SAMPLE_S, SAMPLE_SEED, Arrivals.POISSON, length_scale=case.spec.length_scale
    )
    return replace(case, spec=spec)
