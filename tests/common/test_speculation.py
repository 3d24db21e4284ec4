import itertools
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.latency_model import Batch, LatencyModel, Piece
from common.speculation import MOST, Acceptance, Tier, draft_lengths
from common.speculation_reference import lengths_reference

CHEAP = LatencyModel((Piece(1e-5, 1e-4, 0.02),))
DEAR = LatencyModel((Piece(5e-3, 2e-3, 0.001),))


def make_tier(rate: float = 0.7, decodes: int = 4) -> Tier:
    return Tier(decodes, decodes * 100, Acceptance(rate * 100, (1 - rate) * 100))


def lengths(tiers: dict[str, Tier], latency: LatencyModel = CHEAP, **changes: object) -> dict[str, int]:
    options = {"prompts_wait": False, "kv_used": 0.1, "budget_s": inf, **changes}
    return draft_lengths(tiers, latency, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_acceptance_converges_to_what_is_seen_and_follows_a_change(rate: float) -> None:
    acceptance = Acceptance()
    for wanted in (1 - rate, rate):
        for number in range(1000):
            acceptance = acceptance.observe(1, int((number + 1) * wanted) - int(number * wanted))
        assert acceptance.rate == pytest.approx(wanted, abs=0.05)


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), max_size=300))
def test_acceptance_never_reaches_certainty(seen: list[tuple[int, int]]) -> None:
    acceptance = Acceptance()
    for drafted, accepted in seen:
        acceptance = acceptance.observe(drafted, accepted)
    assert 0 < acceptance.rate < 1
    assert acceptance.accepted + acceptance.rejected < 1200


def test_tokens_after_the_first_rejection_say_nothing() -> None:
    assert Acceptance().observe(8, 0) == Acceptance().observe(1, 0)


def test_expected_tokens_count_the_one_that_needs_no_draft() -> None:
    half = Acceptance(1.0, 1.0)
    assert [half.tokens(n) for n in range(3)] == [1.0, 1.5, 1.75]


def test_tokens_after_an_accepted_one_have_their_own_chance() -> None:
    acceptance = Acceptance()
    for number in range(3000):
        acceptance = acceptance.observe(4, 4 if number % 2 else 0)  # half of the text is easy
    assert acceptance.tokens(1) == pytest.approx(1.5, abs=0.05)
    assert acceptance.tokens(4) == pytest.approx(3.0, abs=0.15)
    for number in range(3000):
        acceptance = acceptance.observe(1, number % 2)  # says nothing about the tokens after
    assert acceptance.tokens(4) == pytest.approx(3.0, abs=0.2)


def test_waiting_prompts_stop_drafting_until_kv_is_nearly_full() -> None:
    tiers = {"tight": make_tier()}
    assert lengths(tiers, prompts_wait=True) == {"tight": 0}
    assert lengths(tiers, prompts_wait=True, kv_used=0.9)["tight"] > 0


def test_nobody_drafts_where_verifying_costs_more_than_it_gains() -> None:
    assert lengths({"tight": make_tier(0.3), "loose": make_tier(0.9)}, DEAR) == {"tight": 0, "loose": 0}


def test_the_tier_whose_drafts_fare_better_drafts_further() -> None:
    found = lengths({"poor": make_tier(0.2), "good": make_tier(0.9)})
    assert 0 <= found["poor"] < found["good"] <= MOST


def test_a_batch_longer_than_the_tightest_slack_is_not_chosen() -> None:
    assert lengths({"tight": make_tier()}, budget_s=0.0200) == {"tight": 0}


def test_without_decodes_nobody_drafts() -> None:
    assert lengths({"tight": make_tier(decodes=0)}) == {"tight": 0}
    assert lengths({}) == {}


models = st.builds(
    LatencyModel,
    st.lists(
        st.builds(Piece, st.floats(1e-6, 1e-2), st.floats(0, 5e-3), st.floats(0, 0.05)), min_size=1, max_size=2
    ).map(tuple),
    st.floats(0, 1e-3),
)
tiers_of = st.lists(st.tuples(st.floats(0.02, 0.98), st.integers(1, 40)), min_size=1, max_size=2)


@given(tiers_of, models, st.one_of(st.just(inf), st.floats(0.001, 0.1)))
@settings(max_examples=150)
def test_no_other_lengths_decode_faster(tiers: list[tuple[float, int]], latency: LatencyModel, budget_s: float) -> None:
    named = {f"t{number}": make_tier(*tier) for number, tier in enumerate(tiers)}
    found = tuple(lengths(named, latency, budget_s=budget_s, most=5).values())

    def rate(choice: tuple[int, ...]) -> float:
        batch = Batch(
            tokens=sum(tier.decodes * (1 + n) for tier, n in zip(named.values(), choice, strict=True)),
            seqs=sum(tier.decodes for tier in named.values()),
            kv_tokens=sum(tier.kv_tokens for tier in named.values()),
            draft_steps=max(choice),
        )
        seconds = latency.seconds(batch)
        gained = sum(t.decodes * t.acceptance.tokens(n) for t, n in zip(named.values(), choice, strict=True))
        return 0.0 if any(choice) and seconds > budget_s else gained / seconds

    best = max(map(rate, itertools.product(range(6), repeat=len(named))))
    assert rate(found) >= best * (1 - 1e-9)


@given(
    st.lists(st.tuples(st.floats(0.02, 0.98), st.integers(0, 40)), min_size=1, max_size=4),
    models,
    st.one_of(st.just(inf), st.floats(0.001, 0.1)),
    st.lists(st.floats(0.3, 3.0), min_size=1, max_size=11),
)
@settings(max_examples=300)
def test_the_compiled_choice_and_the_readable_one_agree(
    tiers: list[tuple[float, int]], latency: LatencyModel, budget_s: float, factors: list[float]
) -> None:
    named = {f"t{number}": make_tier(*tier) for number, tier in enumerate(tiers)}
    if not any(tier.decodes for tier in named.values()):
        return
    found = lengths(named, latency, budget_s=budget_s, most=len(factors) - 1, factors=np.array(factors))
    expected = lengths_reference(named, latency, budget_s, factors)
    gains = [expected_rate(named, chosen, latency, factors) for chosen in (found, expected)]
    assert found == expected or gains[0] == pytest.approx(gains[1], rel=1e-9)  # ties may fall either way by rounding


def expected_rate(tiers: dict[str, Tier], chosen: dict[str, int], latency: LatencyModel, factors: list[float]) -> float:
    tokens = sum(tier.decodes * (1 + chosen[name]) for name, tier in tiers.items())
    seqs, kv = sum(tier.decodes for tier in tiers.values()), sum(tier.kv_tokens for tier in tiers.values())
    # A longest draft that nobody uses is never chosen over the shorter one that gives the same, unless it costs less.
    longest = max(chosen.values())
    seconds = min(latency.seconds(Batch(tokens, seqs, kv, 0.0, n)) * factors[n] for n in range(longest, len(factors)))
    return sum(tier.decodes * tier.acceptance.tokens(chosen[name]) for name, tier in tiers.items()) / seconds


def test_drafts_that_are_seen_to_cost_more_than_predicted_are_given_up() -> None:
    tiers = {"tight": make_tier(0.8)}
    free = lengths(tiers, most=4)["tight"]
    assert free == 4
    assert lengths(tiers, most=4, factors=np.array([1.0, 1.0, 1.1, 9.0, 9.0]))["tight"] == 2
    assert lengths(tiers, most=4, factors=np.array([1.0, 9.0, 9.0, 9.0, 9.0]))["tight"] == 0
