"""The product's policy: who is promised, what happens to the others, and how much fits."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.memory import SurvivalLearner
from admission.options import PlannerOptions
from admission.plan import Plan
from common.messages import Overload, Stage, Verdict
from common.slo import Objective
from tests.admission.ours_states import NOW_S, SLOW_BASE, busy, due_in, plan, state_of
from tests.factories import FAST, make_held, make_running, make_state, make_worker

# promises and refusals


def test_a_feasible_request_is_admitted_with_its_expected_times() -> None:
    held = make_held()
    decision = plan(make_state([held])).dispatch[held.id]
    assert decision.verdict is Verdict.ADMITTED
    assert decision.predicted_ttft_ms is not None
    assert abs(decision.predicted_ttft_ms - (FAST.prefill_seconds(100, 2048) + 0.002) * 1e3) < 0.1


def test_without_a_worker_for_a_stage_everything_is_held() -> None:
    only_prefill = make_worker(id="p", may=frozenset({Stage.PREFILL}))
    assert plan(state_of([make_held()], [only_prefill])) == Plan({}, {}, {})


def test_the_set_of_most_value_is_promised() -> None:
    large = make_held(need_tokens=6000, objective=due_in(0.75))
    small = [make_held(need_tokens=2500, objective=due_in(0.76 + i / 100)) for i in range(2)]
    outcome = plan(state_of([large, *small], [make_worker(id="a")]), longest_batch_steps=math.inf)
    assert list(outcome.defer) == [large.id]
    greedy = plan(state_of([large, *small], [make_worker(id="a")]), select="greedy", longest_batch_steps=math.inf)
    assert set(greedy.defer) == {one.id for one in small}


def test_a_later_round_of_a_session_goes_before_a_first_one() -> None:
    first = make_held(need_tokens=4000, objective=due_in(0.5))
    later = make_held(need_tokens=4000, objective=due_in(0.51), round=2)
    outcome = plan(state_of([first, later], [make_worker(id="a")]), longest_batch_steps=math.inf)
    assert list(outcome.defer) == [first.id]


def test_a_round_after_a_missed_one_is_best_effort() -> None:
    held = make_held(missed_round=True)
    outcome = plan(make_state([held]))
    assert outcome.dispatch[held.id].verdict is Verdict.DEFERRED


def test_what_lost_is_promised_when_it_becomes_possible() -> None:
    held = make_held(deferred=True)
    decision = plan(make_state([held])).dispatch[held.id]
    assert (decision.verdict, decision.reason) == (Verdict.ADMITTED, "promoted")
    assert plan(make_state([held]), deferral=False).dispatch[held.id].verdict is Verdict.DEFERRED


def test_what_can_not_be_promised_is_told_so_once_and_stays_held() -> None:
    held = make_held(objective=due_in(0.5))
    state = state_of([held], [make_worker(id="a")], busy("a"))
    assert plan(state, best_effort_share=0.0).defer[held.id].reason == "prefill_capacity"
    again = plan(replace(state, held=[replace(held, deferred=True)]), best_effort_share=0.0)
    assert (again.defer, again.dispatch, again.reject) == ({}, {}, {})


def test_a_rejection_says_when_to_come_back_and_then_it_is_admitted() -> None:
    held = make_held(objective=due_in(0.5), overload=Overload.REJECT)
    state = state_of([held], [make_worker(id="a")], busy("a"))
    decision = plan(state).reject[held.id]
    assert decision.reason == "prefill_capacity"
    assert decision.retry_after_s is not None
    then_s = NOW_S + decision.retry_after_s
    back = replace(held, arrival_s=then_s, objective=replace(due_in(0.5), arrival_s=then_s))
    outcome = plan(replace(state, held=[back]), then_s)
    assert not outcome.reject


def test_a_full_decode_worker_says_when_one_of_its_decoders_will_have_ended() -> None:
    full = make_worker(id="a", total_blocks=60)
    running = [
        make_running(prefill_worker="a", decode_worker="a", context_tokens=300, max_tokens=100) for _ in range(2)
    ]
    held = make_held(need_tokens=300, max_tokens=100, overload=Overload.REJECT)
    decision = plan(state_of([held], [full], running)).reject[held.id]
    assert decision.reason == "decode_capacity"
    assert decision.retry_after_s is not None
    assert 1.0 < decision.retry_after_s < 30.0


def test_an_slo_below_the_zero_load_time_says_what_is_possible() -> None:
    held = make_held(objective=due_in(0.001), overload=Overload.REJECT)
    assert "slo_unattainable: TTFT is at least 17.1 ms" in plan(make_state([held])).reject[held.id].reason
    tight = make_held(objective=due_in(1.0, tpot_s=0.001), overload=Overload.REJECT)
    assert "slo_unattainable: TPOT is at least 5.2 ms" in plan(make_state([tight])).reject[tight.id].reason


def test_a_promise_keeps_its_margin() -> None:
    held = make_held(need_tokens=2000, objective=due_in(FAST.prefill_seconds(2000, 2048) * 1.02 + 0.002))
    state = state_of([held], [make_worker(id="a", max_batch_tokens=4096)])
    keen = {"best_effort_share": 0.0, "longest_batch_steps": math.inf}
    assert plan(state, margin=0.05, **keen).dispatch[held.id].verdict is Verdict.DEFERRED
    assert plan(state, margin=0.0, **keen).dispatch[held.id].verdict is Verdict.ADMITTED


def test_a_decoder_that_would_slow_others_below_their_tpot_is_not_promised() -> None:
    tight = [
        make_running(objective=Objective(99.0, 1.0, 0.006), prefill_worker="a", decode_worker="a") for _ in range(5)
    ]
    held = make_held()
    outcome = plan(state_of([held], [make_worker(id="a")], tight))
    assert outcome.dispatch[held.id].verdict is Verdict.DEFERRED


@pytest.mark.parametrize(("decoders", "verdict"), [(185, Verdict.ADMITTED), (200, Verdict.DEFERRED)])
def test_decoders_that_are_ahead_may_fill_a_worker_at_expected_costs(decoders: int, verdict: Verdict) -> None:
    """Two hundred fit in 50 ms, and 176 if each step took as much longer as the margin allows for."""
    ahead = {"objective": Objective(50.0, 1.0, 0.05), "first_token_s": 60.0, "generated_tokens": 1000}
    on_a = {"prefill_worker": "a", "decode_worker": "a", "max_tokens": 1100}
    held = make_held(objective=due_in(3.0, 0.05))
    worker = make_worker(id="a", max_seqs=1000, latency=SLOW_BASE, total_blocks=8192)
    running = [make_running(**ahead, **on_a) for _ in range(decoders)]
    assert plan(state_of([held], [worker], running)).dispatch[held.id].verdict is verdict


# KV


def test_kv_is_not_promised_twice() -> None:
    requests = [make_held(need_tokens=100, max_tokens=100) for _ in range(3)]
    outcome = plan(state_of(requests, [make_worker(id="a", total_blocks=20)]))
    assert len(outcome.dispatch) == 1


def test_more_fits_when_outputs_are_known_to_be_short() -> None:
    learner = SurvivalLearner(refresh=1)
    for _ in range(1000):
        learner.observe("chat", 5)
    requests = [make_held(need_tokens=100, max_tokens=1000) for _ in range(4)]
    state = state_of(requests, [make_worker(id="a", total_blocks=80)], survival=learner.snapshot())
    assert len(plan(state).dispatch) > len(plan(state, memory="reserve").dispatch)


# always


@given(
    st.lists(
        st.tuples(st.integers(1, 3000), st.floats(0.01, 3.0), st.sampled_from(list(Overload))), min_size=1, max_size=30
    ),
    st.integers(0, 6),
)
def test_every_request_is_in_at_most_one_list_and_the_input_is_left_alone(
    shapes: list[tuple[int, float, Overload]], backlog: int
) -> None:
    held = [make_held(need_tokens=n, objective=due_in(s), overload=overload) for n, s, overload in shapes]
    state = make_state(held, busy("p", backlog))
    before = (list(state.held), list(state.running))
    outcome = plan(state)
    decided = [*outcome.dispatch, *outcome.defer, *outcome.reject]
    assert len(decided) == len(set(decided))
    assert set(decided) <= {one.id for one in held}
    assert (list(state.held), list(state.running)) == before


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="best_effort_share"):
        PlannerOptions(best_effort_share=1.5)
    with pytest.raises(ValueError, match="margin"):
        PlannerOptions(margin=math.nan)
