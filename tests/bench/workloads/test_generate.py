from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from bench.workloads.generate import Arrivals, WorkloadSpec, generate
from bench.workloads.item import Item
from bench.workloads.scale import rate_of, scale_lengths, scale_rate
from bench.workloads.scenarios import SCENARIOS
from common.tiers import load_tiers

SPEC = WorkloadSpec("mixed", rate=6.0, seconds=200.0, seed=1)


@pytest.mark.parametrize("arrivals", list(Arrivals))
@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_the_same_seed_gives_the_same_workload_and_another_seed_another(scenario: str, arrivals: Arrivals) -> None:
    spec = replace(SPEC, scenario=scenario, arrivals=arrivals, seconds=30.0)
    assert generate(spec) == generate(spec)
    assert generate(spec) != generate(replace(spec, seed=2))


@pytest.mark.parametrize("arrivals", list(Arrivals))
@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_requests_come_at_about_the_rate_with_rounds_counted(scenario: str, arrivals: Arrivals) -> None:
    items = generate(replace(SPEC, scenario=scenario, arrivals=arrivals, seconds=600.0))
    assert len(items) / 600.0 == pytest.approx(6.0, rel=0.2)


def test_every_tier_is_one_of_the_products() -> None:
    tiers = {kind.tier for scenario in SCENARIOS.values() for kind in scenario.kinds}
    assert tiers <= set(load_tiers().names)


def test_mixed_has_a_third_of_each() -> None:
    items = generate(SPEC)
    for tier in ("chat", "code", "summarize"):
        assert sum(item.tier == tier for item in items) / len(items) == pytest.approx(1 / 3, abs=0.05)


def test_later_rounds_of_a_tool_session_follow_the_one_before() -> None:
    sessions = defaultdict[str, list[Item]](list)
    for item in generate(replace(SPEC, scenario="tool")):
        sessions[item.session].append(item)
    assert {len(rounds) for rounds in sessions.values()} == {2, 3, 4, 5}
    for rounds in sessions.values():
        assert [item.after_s is None for item in rounds] == [True] + [False] * (len(rounds) - 1)


def test_reasoning_thinks_before_it_answers() -> None:
    items = generate(replace(SPEC, scenario="reasoning"))
    assert all(0 < item.thinking_tokens < item.output_tokens for item in items)


def test_lengths_do_not_change_with_the_rate() -> None:
    slow, fast = generate(replace(SPEC, rate=2.0)), generate(replace(SPEC, rate=20.0))
    assert [item.prompt_tokens for item in slow] == [item.prompt_tokens for item in fast[: len(slow)]]


def test_a_trace_file_sets_the_pattern_and_the_rate_compresses_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:17:{second:02d}.0000000,10,1" for second in (1, 2, 4, 7, 11, 16)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    spec = replace(SPEC, arrivals=Arrivals.TRACE, trace_file=trace, rate=2.0, seconds=3.0)
    times = [item.arrival_s for item in generate(spec)]
    assert times == pytest.approx([0.0, 0.2, 0.6, 1.2, 2.0, 3.0], abs=1e-5)


def test_tenants_share_the_requests() -> None:
    assert {item.tenant for item in generate(replace(SPEC, tenants=3))} == {"t1", "t2", "t3"}


def test_scaling_the_rate_compresses_arrivals_but_not_tools() -> None:
    items = [Item(0.0, "a", "tool", 10, 5), Item(0.0, "a", "tool", 10, 5, 0, 2.0), Item(8.0, "b", "chat", 10, 5)]
    scaled = scale_rate(items, 4.0)
    assert [item.arrival_s for item in scaled] == [0.0, 0.0, 2.0]
    assert scaled[1].after_s == 2.0
    assert rate_of(scaled) == 1.5


def test_scaling_lengths_leaves_a_token_of_each() -> None:
    assert scale_lengths([Item(0.0, "a", "chat", 100, 3, 1)], 0.1) == [Item(0.0, "a", "chat", 10, 1, 1)]
    assert scale_lengths([Item(0.0, "a", "chat", 100, 300)], 0.25) == [Item(0.0, "a", "chat", 25, 75)]
