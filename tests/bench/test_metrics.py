import json
import math
from dataclasses import replace
from itertools import count

import pytest

from bench.metrics import report, stationary
from bench.outcome import Outcome
from bench.workloads import Item
from common.messages import Verdict
from common.slo import Objective

SESSIONS = count()


def outcome(
    arrival_s: float = 0.0,
    ttft_s: float | None = 0.5,
    step_s: float = 0.05,
    output: int = 20,
    verdict: Verdict = Verdict.ADMITTED,
    tenant: str = "t1",
    tier: str = "chat",
    promised: bool = True,
    predicted_ttft_s: float | None = None,
) -> Outcome:
    times = () if ttft_s is None else tuple(arrival_s + ttft_s + step_s * n for n in range(output))
    return Outcome(
        item=Item(arrival_s, f"s{next(SESSIONS)}", tier, 100, output, tenant=tenant),
        objective=Objective(arrival_s, 1.0, 0.1) if promised else None,
        verdict=verdict,
        token_times_s=times,
        arrival_s=arrival_s,
        ended_s=times[-1] if times else arrival_s + 3.0,
        predicted_ttft_s=predicted_ttft_s,
    )


def test_all_requests_are_in_the_denominator() -> None:
    late, refused = outcome(ttft_s=2.0), outcome(ttft_s=None, verdict=Verdict.REJECTED)
    deferred = outcome(ttft_s=0.5, verdict=Verdict.DEFERRED)
    found = report([outcome(), late, refused, deferred], 10.0)
    assert (found.requests, found.attainment, found.met) == (4, 0.25, 0.5)
    assert (found.admitted, found.deferred, found.rejected) == (0.5, 0.25, 0.25)


def test_rounds_of_a_session_share_a_fate() -> None:
    rounds = [replace(one, item=replace(one.item, session="s")) for one in map(outcome, (0.0, 10.0, 20.0))]
    other = outcome(30.0)
    assert report([*rounds, other], 10.0).attainment == 1.0
    late = replace(rounds[1], token_times_s=tuple(time_s + 5.0 for time_s in rounds[1].token_times_s))
    assert report([rounds[0], late, rounds[2], other], 10.0).attainment == 0.5
    assert report([rounds[0], late, rounds[2], other], 10.0, fates=False).attainment == 0.75


def test_best_effort_is_in_none() -> None:
    found = report([outcome(), outcome(promised=False, verdict=Verdict.DEFERRED, tier="batch")], 10.0)
    assert (found.requests, found.attainment, found.deferred) == (1, 1.0, 0.0)


def test_strict_attainment_has_no_tolerance() -> None:
    found = report([outcome(ttft_s=1.04), outcome(ttft_s=0.9)], 10.0)
    assert (found.attainment, found.attainment_strict) == (1.0, 0.5)


def test_the_ttft_of_those_never_served_counts_as_infinite() -> None:
    found = report([outcome(ttft_s=0.5), outcome(ttft_s=None, verdict=Verdict.DEFERRED)], 10.0)
    assert found.ttft_s == (0.5, math.inf, math.inf)
    assert found.deferred_ttft_over_slo_p99 == math.inf
    assert found.as_json()["ttft_s"] == [0.5, None, None]
    json.dumps(found.as_json(), allow_nan=False)


def test_the_wait_of_the_deferred_is_told_in_multiples_of_their_objective() -> None:
    found = report([outcome(), outcome(ttft_s=7.0, verdict=Verdict.DEFERRED)], 10.0)
    assert found.deferred_ttft_over_slo_p99 == pytest.approx(7.0)


def test_goodput_counts_what_attained() -> None:
    found = report([outcome(), outcome(), outcome(ttft_s=4.0)], 10.0)
    assert (found.goodput_requests_per_s, found.goodput_tokens_per_s) == (0.2, 4.0)


def test_jains_index_is_one_if_even_and_a_half_if_one_of_two_tenants_gets_all() -> None:
    good, bad = outcome(tenant="a"), outcome(tenant="b", ttft_s=5.0)
    assert report([good, outcome(tenant="b")], 1.0).jain == pytest.approx(1.0)
    assert report([good, bad], 1.0).jain == pytest.approx(0.5)


def test_tiers_are_reported_by_themselves() -> None:
    found = report([outcome(tier="chat"), outcome(tier="code", ttft_s=3.0)], 10.0)
    assert {tier: one.attainment for tier, one in found.tiers.items()} == {"chat": 1.0, "code": 0.0}


def test_predictions_are_held_against_what_came() -> None:
    assert report([outcome(ttft_s=0.5, predicted_ttft_s=0.7)], 1.0).predicted_ttft_error == pytest.approx(0.2)


def test_steady_waits_are_stationary_and_growing_ones_are_not() -> None:
    arrivals = [0.1 * i for i in range(1000)]
    assert stationary([outcome(at_s, ttft_s=0.5) for at_s in arrivals])
    assert not stationary([outcome(at_s, ttft_s=0.5 * at_s) for at_s in arrivals])
