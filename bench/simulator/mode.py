"""``--mode sim``: a case becomes a simulation and a report."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from bench.case import Case
from bench.metrics import Report, report
from bench.outcome import Outcome
from bench.simulator.bound import bound
from bench.simulator.settings import SimulationSettings
from bench.simulator.simulation import Run, Simulation
from bench.simulator.systems import SYSTEMS, Context, Ingredients, Tuning
from bench.workloads import Arrivals, Item, WorkloadSpec, generate
from common.presets import PRESETS, Preset
from common.tiers import Tiers, load_tiers

BUDGETS = (128, 256, 512, 1024, 2048, 4096)
SPEC_BUDGETS = (512, 1024, 2048)
SPEC_DRAFTS = (2, 3, 5)
WHOLE_PROMPTS = (2048, 4096, 8192)
HISTORY_S = 200.0
HISTORY_RATE = 3.0
HISTORY_SEED = 900_001


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Options of a simulated case."""

    settings: SimulationSettings = field(default_factory=SimulationSettings)
    tuning: Tuning = field(default_factory=Tuning)
    ingredients: Ingredients = field(default_factory=Ingredients)


class SimMode:
    """See :class:`bench.case.Mode`."""

    parallel = True

    def run(self, case: Case) -> Report:
        """Simulate, and report."""
        items = case.items()
        span_s = max(item.arrival_s for item in items) or 1.0
        if case.system == "bound":
            return bound(items, PRESETS[case.preset], _tiers(case), _settings(case))
        return report(simulate(case, items).outcomes, span_s)

    def record(self, case: Case) -> tuple[Outcome, ...]:
        """Simulate, and say what became of each request."""
        return simulate(case).outcomes

    def tunings(self, case: Case) -> list[SimOptions]:
        """Budgets, drafts and splits by hand for the systems that have them."""
        options = _options(case)
        return [replace(options, tuning=tuning) for tuning in _tunings(case.system, PRESETS[case.preset], case.workers)]

    def start_rate(self, case: Case) -> float:
        """From the work of a mean request in large batches."""
        latency = PRESETS[case.preset].latency
        items = case.at(4.0).items() if case.workload is None else case.items()
        piece = latency.pieces[-1]
        tokens = sum(item.prompt_tokens for item in items) / len(items)
        decoded = sum(item.output_tokens for item in items) / len(items)
        seconds = (tokens + decoded) * piece.k_token + decoded * piece.base / 32 + tokens / 1024 * piece.base
        return max(0.05, 0.5 * case.workers / seconds)

    def described(self) -> dict[str, Any]:
        """The preset says it all."""
        return {}

    def close(self) -> None:
        """Nothing was started."""


def simulate(case: Case, items: Sequence[Item] | None = None) -> Run:
    """The whole run of a case."""
    options, preset, tiers = _options(case), PRESETS[case.preset], _tiers(case)
    items = case.items() if items is None else items
    settings = _settings(case)
    context = Context(items, preset, settings, options.tuning, options.ingredients, _history(case))
    make_former, make_front = SYSTEMS[case.system](context)
    return Simulation(items, preset, tiers, settings, make_former, make_front, case.spec.seed).run()


def _options(case: Case) -> SimOptions:
    return case.options if isinstance(case.options, SimOptions) else SimOptions()


def _settings(case: Case) -> SimulationSettings:
    return replace(_options(case).settings, workers=case.workers)


def _tiers(case: Case) -> Tiers:
    return load_tiers(tpot_scale=case.tpot_scale)


def _history(case: Case) -> list[tuple[str, int]]:
    """What a service has seen before the run: outputs of the same scenario and other seeds; of a file, nothing."""
    if case.workload is not None:
        return []
    return _seen(case.spec.scenario, case.spec.length_scale)


@lru_cache(maxsize=16)
def _seen(scenario: str, length_scale: float) -> list[tuple[str, int]]:
    spec = WorkloadSpec(scenario, HISTORY_RATE, HISTORY_S, HISTORY_SEED, Arrivals.POISSON, length_scale=length_scale)
    return [(item.tier, item.output_tokens) for item in generate(spec)]


def _tunings(system: str, preset: Preset, workers: int) -> list[Tuning]:
    if system in ("vllm", "edf", "sarathi"):
        return [Tuning(2048), *(Tuning(budget) for budget in BUDGETS if budget != 2048)]
    if system == "vllm-spec":
        drafts = SPEC_DRAFTS if preset.drafts else (0,)
        return [Tuning(budget, longest) for budget in SPEC_BUDGETS for longest in drafts]
    if system == "vllm-prefill-first":
        return [Tuning(budget) for budget in WHOLE_PROMPTS]
    if system == "disagg":
        budgets = (2048, 4096)
        return [Tuning(budget, 0, split) for split in range(1, max(2, workers)) for budget in budgets]
    return [Tuning()]
