"""A workload of a scenario: arrivals, lengths and sessions, the same for the same seed."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.workloads.arrivals import Bursts, bursty, phased, poisson
from bench.workloads.azure import CODE_RATE, CONVERSATION_RATE, code_arrivals, conversation_arrivals
from bench.workloads.item import Item, in_order
from bench.workloads.scale import scale_lengths
from bench.workloads.scenarios import SCENARIOS, Kind, Scenario, TraceName
from bench.workloads.traces import read_trace
from common.errors import WorkloadError

Floats = NDArray[np.float64]


class Arrivals(StrEnum):
    """How requests arrive."""

    POISSON = "poisson"
    BURSTY = "bursty"
    PHASED = "phased"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """What to generate; ``rate`` is requests per second over all workers, rounds of sessions included.

    Under ``trace``, arrivals are those of ``trace_file``, else generated like the scenario's Azure trace; both are
    compressed in time to the rate, from ``trace_start_s`` of the file on.
    """

    scenario: str
    rate: float
    seconds: float
    seed: int = 0
    arrivals: Arrivals = Arrivals.POISSON
    bursts: Bursts = field(default_factory=Bursts)
    length_scale: float = 1.0
    tenants: int = 1
    trace_file: Path | None = None
    trace_start_s: float = 0.0


def generate(spec: WorkloadSpec) -> list[Item]:
    """Items in order of arrival, at least one; raises KeyError for an unknown scenario, WorkloadError for a trace."""
    scenario = SCENARIOS[spec.scenario]
    arrivals_rng, kinds_rng, lengths_rng = (
        np.random.default_rng([spec.seed, stream]) for stream in range(3)
    )  # of their own, so that lengths do not change with the rate
    times = _times(spec, scenario, arrivals_rng)
    if not len(times):
        times = np.array([spec.seconds / 2])
    items: list[Item] = []
    for i, at_s in enumerate(times):
        kind = scenario.kinds[int(kinds_rng.integers(len(scenario.kinds)))]
        tenant = f"t{int(kinds_rng.integers(spec.tenants)) + 1}"
        items += _session(kind, float(at_s), f"s{i}", tenant, lengths_rng)
    items = in_order(items)
    return items if spec.length_scale == 1.0 else scale_lengths(items, spec.length_scale)


def _times(spec: WorkloadSpec, scenario: Scenario, rng: np.random.Generator) -> Floats:
    rate = spec.rate * len(scenario.kinds) / sum(kind.mean_rounds for kind in scenario.kinds)
    if spec.arrivals is Arrivals.POISSON:
        return poisson(rate, spec.seconds, rng)
    if spec.arrivals is Arrivals.BURSTY:
        return bursty(rate, spec.seconds, spec.bursts, rng)
    if spec.arrivals is Arrivals.PHASED:
        return phased(rate, spec.seconds, spec.bursts, rng)
    if spec.trace_file is not None:
        return _replayed(spec.trace_file, spec.trace_start_s, rate, spec.seconds)
    return _like_trace(scenario.trace, rate, spec.seconds, rng)


def _like_trace(trace: TraceName, rate: float, seconds: float, rng: np.random.Generator) -> Floats:
    native, arrivals = (CODE_RATE, code_arrivals) if trace == "code" else (CONVERSATION_RATE, conversation_arrivals)
    count = max(2, round(rate * seconds))
    drawn = arrivals(3 * count / native + 600.0, rng)
    return _squeezed(drawn, count, rate)


def _replayed(path: Path, start_s: float, rate: float, seconds: float) -> Floats:
    recorded = np.array([item.arrival_s for item in read_trace(path) if item.after_s is None])
    recorded = recorded[recorded >= start_s]
    if len(recorded) < 2:
        raise WorkloadError(f"{path} has no two requests from second {start_s} on")
    return _squeezed(recorded, max(2, round(rate * seconds)), rate)


def _squeezed(recorded: Floats, count: int, rate: float) -> Floats:
    """The first ``count`` arrivals in their own pattern, at this rate."""
    taken = recorded[:count]
    span_s = float(taken[-1] - taken[0]) or 1.0
    squeezed: Floats = (taken - taken[0]) * (len(taken) / rate / span_s)
    return squeezed


def _session(kind: Kind, at_s: float, session: str, tenant: str, rng: np.random.Generator) -> list[Item]:
    rounds = int(rng.integers(kind.rounds[0], kind.rounds[1] + 1)) if kind.rounds[1] > 1 else 1
    prompts, outputs = kind.prompt.draw(rounds, rng), kind.output.draw(rounds, rng)
    thinking = kind.thinking.draw(rounds, rng) if kind.thinking else np.zeros(rounds, np.int64)
    return [
        Item(
            arrival_s=round(at_s, 6),
            session=session,
            tier=kind.tier,
            prompt_tokens=int(prompts[i]),
            output_tokens=int(outputs[i] + thinking[i]),
            thinking_tokens=int(thinking[i]),
            after_s=round(float(rng.exponential(kind.tool_s)), 6) if i else None,
            tenant=tenant,
        )
        for i in range(rounds)
    ]
