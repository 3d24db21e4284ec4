"""The paper's prefill budget, dynamic program and speculation lengths for one replica."""

from dataclasses import replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from admission.paper import Newcomer, Replica, accept, accepted_tokens, keeps_up, prefill_budget, speculation
from common.latency_model import LatencyModel, Piece

MODEL = LatencyModel((Piece(1e-4, 5e-3, 0.01),))
REPLICA = Replica(MODEL, 4096, 10_000.0, {}, True, 0.0, 16, 0, MODEL)


def test_without_decoders_the_budget_is_what_batches_hold() -> None:
    assert prefill_budget(REPLICA, 0.11, {}) == 1000


def test_batches_end_at_the_tightest_deadline_and_loose_decoders_skip_some() -> None:
    assert prefill_budget(REPLICA, 0.2, {0.05: 2}) == 4 * 400 - 4 * 2
    assert prefill_budget(REPLICA, 0.2, {0.05: 2, 0.1: 10}) == 4 * 400 - 4 * 2 - 2 * 10


def test_drafts_make_batches_longer_and_so_leave_more_for_prompts() -> None:
    drafting = replace(REPLICA, acceptance=0.7)
    drafts = speculation([("a", 0.05, 2)], MODEL, 0.7)["a"]
    length_s = 0.05 * accepted_tokens(drafts, 0.7)
    held = MODEL.tokens_within(length_s - 5e-3 * (drafts - 1), 2, 0) - 2 * drafts
    assert drafts > 1
    assert prefill_budget(drafting, 4.01 * length_s, {0.05: 2}) == 4 * held
    assert prefill_budget(drafting, 4.01 * length_s, {0.05: 2}) > prefill_budget(REPLICA, 4.01 * length_s, {0.05: 2})


def test_drafts_that_are_never_right_change_no_budget() -> None:
    assert prefill_budget(replace(REPLICA, acceptance=1e-6), 0.2, {0.05: 2}) == prefill_budget(REPLICA, 0.2, {0.05: 2})


def test_decoders_elsewhere_take_nothing_of_the_prompts_time() -> None:
    apart = replace(REPLICA, shares_batches=False)
    assert prefill_budget(apart, 0.2, {0.05: 2}) == prefill_budget(apart, 0.2, {})


def test_decoders_that_can_not_keep_up_are_seen() -> None:
    assert keeps_up(REPLICA, {0.05: 400})
    assert not keeps_up(REPLICA, {0.05: 401})


@given(
    st.lists(
        st.builds(
            Newcomer,
            due_s=st.floats(0.02, 1.0),
            work_tokens=st.integers(50, 3000),
            memory_tokens=st.integers(100, 4000),
            tpot_s=st.sampled_from([0.05, 0.1]),
            value=st.sampled_from([1.0, 2.0]),
        ),
        max_size=6,
    )
)
def test_the_selected_are_worth_as_much_as_any_feasible_set(newcomers: list[Newcomer]) -> None:
    newcomers = sorted(newcomers, key=lambda one: one.due_s)

    def feasible(chosen: tuple[int, ...]) -> bool:
        budget, then_s, decoders = 0.0, 0.0, {0.05: 0, 0.1: 0}
        for i in chosen:
            one = newcomers[i]
            budget += prefill_budget(REPLICA, one.due_s - then_s, decoders) - one.work_tokens
            then_s = one.due_s
            decoders[one.tpot_s] += 1
            if budget < 0:
                return False
        return sum(newcomers[i].memory_tokens for i in chosen) <= REPLICA.memory_tokens

    sets = [c for n in range(len(newcomers) + 1) for c in combinations(range(len(newcomers)), n)]
    best = max(sum(newcomers[i].value for i in chosen) for chosen in sets if feasible(chosen))
    selected = accept(newcomers, REPLICA)
    assert feasible(tuple(sorted(selected)))
    assert sum(newcomers[i].value for i in selected) == best


def test_nobody_is_selected_beyond_the_seats_and_the_memory() -> None:
    some = [Newcomer(1.0, 100, 4000, 0.1, 1.0) for _ in range(5)]
    assert len(accept(some, REPLICA)) == 2
    assert len(accept(some, replace(REPLICA, seats=1))) == 1


def test_what_is_accepted_of_drafts_is_a_geometric_sum() -> None:
    assert accepted_tokens(1, 0.7) == 1
    assert abs(accepted_tokens(3, 0.5) - 1.75) < 1e-12
    assert accepted_tokens(4, 1.0) == 4


def test_drafts_lengthen_batches_where_their_fixed_cost_is_high_and_not_where_drafting_is_dear() -> None:
    cheap = LatencyModel((Piece(1e-4, 0.0, 0.04),))
    dear = LatencyModel((Piece(1e-4, 0.2, 0.04),))
    tiers = [("tight", 0.05, 4.0), ("loose", 0.1, 4.0)]
    assert speculation(tiers, cheap, 0.7)["tight"] > 1
    assert speculation(tiers, dear, 0.7) == {"tight": 1, "loose": 1}
    assert speculation([], cheap, 0.7) == {}
