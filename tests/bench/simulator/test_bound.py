import pytest

from bench.case import Case
from bench.simulator.bound import bound
from bench.simulator.mode import SimMode
from bench.simulator.settings import SimulationSettings
from bench.workloads import Arrivals, WorkloadSpec, generate
from common.tiers import load_tiers
from tests.bench.simulator.support import PLAIN, PRESET, item, run

SETTINGS = SimulationSettings(workers=2)


def of(items: list, workers: int = 2) -> float:  # type: ignore[type-arg]
    return bound(items, PRESET, load_tiers(), SimulationSettings(workers=workers)).attainment


@pytest.mark.parametrize("system", ["vllm", "ours", "slos-serve", "disagg"])
@pytest.mark.parametrize("rate", [6.0, 14.0])
def test_no_system_does_better_than_the_bound(system: str, rate: float) -> None:
    items = generate(WorkloadSpec("mixed", rate, 15.0, 2, Arrivals.BURSTY))
    found = run(items, system, workers=2)
    assert sum(one.met() for one in found.outcomes) / len(items) <= of(items) + 1e-9


def test_all_fit_at_a_light_load_and_not_all_under_a_heavy_one() -> None:
    light, heavy = (generate(WorkloadSpec("mixed", rate, 20.0, 2)) for rate in (2.0, 60.0))
    assert of(light) == 1.0
    assert of(heavy) < 0.8


def test_more_engines_never_bound_lower() -> None:
    items = generate(WorkloadSpec("mixed", 20.0, 20.0, 2))
    assert of(items, 1) <= of(items, 2) <= of(items, 4)


def test_a_case_is_bound_by_its_own_engines() -> None:
    spec = WorkloadSpec("mixed", 20.0, 20.0, 2)
    one, four = (SimMode().run(Case("bound", spec, PRESET.name, workers)).attainment for workers in (1, 4))
    assert one < four


def test_of_prompts_at_once_as_many_are_kept_as_fit_before_the_deadline() -> None:
    items = [item(0.0, 1000, 1, session=str(i)) for i in range(20)]
    zero_load_s = PLAIN.latency.prefill_seconds(1000, PLAIN.max_batch_tokens)
    found = bound(items, PLAIN, load_tiers(), SimulationSettings(workers=1))
    assert found.attainment * 20 == int(5 * 1.05 * zero_load_s / 0.1)


def test_short_prompts_are_kept_rather_than_long_ones() -> None:
    long, short = item(0.0, 2000, 1, session="l"), [item(0.0, 150, 1, session=str(i)) for i in range(12)]
    found = bound([*short, long, long], PLAIN, load_tiers(), SimulationSettings(workers=1))
    assert found.attainment < 1.0
    assert found.goodput_requests_per_s > 0
