"""Short runs with defaults."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.case import Case
from bench.simulator.mode import SimOptions
from bench.simulator.settings import SimulationSettings
from bench.simulator.simulation import Run, Simulation
from bench.simulator.systems import SYSTEMS, Context, Ingredients, Tuning
from bench.workloads import Arrivals, Item, WorkloadSpec, generate
from common.latency_model import LatencyModel, Piece
from common.messages import Slo
from common.presets import PRESETS, Preset
from common.tiers import load_tiers

PRESET = PRESETS["opt-13b-tp2-a100"]
PLAIN = Preset("plain", LatencyModel((Piece(1e-4, 0.0, 0.01),)), 16_000, 1000, 1e9)
"""An engine whose times are easy to reckon: 10 ms an iteration and 0.1 ms a token."""


def item(arrival_s: float = 0.0, prompt: int = 100, output: int = 10, tier: str = "chat", **changes: Any) -> Item:
    session = changes.pop("session", f"s{arrival_s}-{prompt}-{output}")
    return Item(arrival_s, session, tier, prompt, output, **changes)


def workload(scenario: str = "mixed", rate: float = 8.0, seconds: float = 20.0, seed: int = 5) -> list[Item]:
    return generate(WorkloadSpec(scenario, rate, seconds, seed, Arrivals.BURSTY))


def simulation(
    items: Sequence[Item],
    system: str = "vllm",
    preset: Preset = PRESET,
    tuning: Tuning | None = None,
    ingredients: Ingredients | None = None,
    seed: int = 1,
    promised: Sequence[Slo | None] | None = None,
    **settings: Any,
) -> Simulation:
    assumed = replace(SimulationSettings(), **settings)
    context = Context(items, preset, assumed, tuning or Tuning(), ingredients or Ingredients())
    return Simulation(items, preset, load_tiers(), assumed, *SYSTEMS[system](context), seed, promised)


def run(items: Sequence[Item], system: str = "vllm", **changes: Any) -> Run:
    return simulation(items, system, **changes).run()


def case(system: str = "vllm", rate: float = 8.0, seconds: float = 10.0, **changes: Any) -> Case:
    spec = WorkloadSpec("mixed", rate, seconds, 3)
    return Case(system, spec, PRESET.name, 2, options=SimOptions(), **changes)
