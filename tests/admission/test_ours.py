"""The product's policy: who is promised, where, when it is sent, and what happens to the others."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admission.memory import SurvivalLearner
from admission.options import PlannerOptions
from admission.plan import ClusterState, Held, Plan, Worker
from admission.policies.ours import Ours
from common.latency_model import LatencyModel, Piece
from common.messages import Decision, Overload, Stage, Verdict
from common.slo import Objective
from tests.factories import FAST, make_held, make_running, make_state, make_worker

NOW_S = 100.0
SLOW_BASE = LatencyModel((Piece(k_token=1e-4, k_draft=0.0, base=0.03),))
BOTH = [make_worker(id="a"), make_worker(id="b")]


def plan(state: ClusterState, now_s: float = NOW_S, **options: Any) -> Plan:
    return Ours(PlannerOptions(**options)).plan(state, now_s)


def due_in(seconds: float, tpot_s: float = 0.1) -> Objective:
    return Objective(arrival_s=NOW_S, ttft_s=seconds, tpot_s=tpot_s)


def state_of(held: list[Held], workers: list[Worker], running: Any = None, **changes: Any) -> ClusterState:
    return make_state(held, running, workers={worker.id: worker for worker in workers}, **changes)


def lanes(decision: Decision) -> tuple[str | None, str | None]:
    return decision.prefill_worker, decision.decode_worker


def busy(worker: str, prompts: int = 5, tokens: int = 2000) -> list[Any]:
    return [
        make_running(
            prefill_worker=worker,
            decode_worker=worker,
            todo_tokens=tokens,
            context_tokens=tokens,
            first_token_s=None,
            generated_tokens=0,
            objective=Objective(NOW_S, 0.4, 0.1),
        )
        for _ in range(prompts)
    ]


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


# placement


def test_a_prompt_goes_where_it_ends_first() -> None:
    held = make_held()
    assert plan(state_of([held], BOTH, busy("a"))).dispatch[held.id].prefill_worker == "b"


def test_no_worker_takes_all_that_would_fit_its_batch() -> None:
    held = [make_held(need_tokens=300, objective=due_in(5.0)) for _ in range(4)]
    outcome = plan(state_of(held, BOTH))
    assert sorted(lanes(decision)[0] or "" for decision in outcome.dispatch.values()).count("a") == 2


def test_a_second_long_prompt_stays_held_until_its_worker_is_about_to_be_idle() -> None:
    first, second = (make_held(need_tokens=2000, objective=due_in(5.0 + i)) for i in range(2))
    outcome = plan(state_of([first, second], [make_worker(id="a")]), hold_s=math.inf)
    assert list(outcome.dispatch) == [first.id]
    assert outcome.wake_s is not None
    assert NOW_S < outcome.wake_s < NOW_S + 1.3 * FAST.prefill_seconds(2000, 2048)


@pytest.mark.parametrize("options", [{"hold_s": 0.0}, {"late_binding": False}, {"central_hold": False}])
def test_without_a_hold_a_promise_is_bound_at_arrival(options: dict[str, Any]) -> None:
    held = [make_held(need_tokens=2000, objective=due_in(5.0 + i)) for i in range(2)]
    assert len(plan(state_of(held, [make_worker(id="a")]), **options).dispatch) == 2


def test_from_four_workers_on_a_second_long_prompt_is_held_without_being_told() -> None:
    held = [make_held(need_tokens=2000, objective=due_in(5.0 + i)) for i in range(5)]
    assert len(plan(state_of(held, [make_worker(id=name) for name in "abcd"])).dispatch) == 4
    assert len(plan(state_of(held, [make_worker(id=name) for name in "abc"])).dispatch) == 5


def test_an_iteration_s_end_is_estimated_from_when_the_one_before_it_ended() -> None:
    running = [make_running(prefill_worker="a", decode_worker="a", objective=Objective(90.0, 1.0, 0.5), seen_s=NOW_S)]
    held = make_held(need_tokens=100, objective=due_in(1.0, tpot_s=0.5))
    slow = LatencyModel((Piece(1e-4, 0.0, 0.1),))

    def expected_ms(seen_s: float) -> float:
        worker = make_worker(id="a", latency=slow, stepped_s=seen_s)
        decision = plan(state_of([held], [worker], running)).dispatch[held.id]
        assert decision.predicted_ttft_ms is not None
        return decision.predicted_ttft_ms

    assert expected_ms(NOW_S - 0.06) == pytest.approx(expected_ms(NOW_S - 0.04) - 20, abs=1)


def test_who_is_held_gives_way_to_more_value_and_who_was_sent_does_not() -> None:
    one = make_held(need_tokens=2000, objective=due_in(1.0))
    better = make_held(need_tokens=2000, objective=due_in(1.0), value=3.0)
    worker, sent = make_worker(id="a"), busy("a", prompts=2)
    before = plan(state_of([one], [worker], sent), hold_s=math.inf)
    assert (before.dispatch, before.defer) == ({}, {})
    after = plan(state_of([one, better], [worker], sent), hold_s=math.inf)
    assert (list(after.dispatch), list(after.defer)) == ([], [one.id])
    now_sent = [*sent, replace(busy("a", prompts=1)[0], id=one.id, objective=one.objective)]
    assert list(plan(state_of([better], [worker], now_sent), hold_s=math.inf).defer) == [better.id]


def test_a_hold_ends_when_it_has_lasted_long_enough() -> None:
    held = [make_held(need_tokens=2000, objective=due_in(5.0 + i)) for i in range(2)]
    state = state_of(held, [make_worker(id="a")])
    assert len(plan(state, hold_s=0.05).dispatch) == 1
    assert len(plan(state, NOW_S + 0.06, hold_s=0.05).dispatch) == 2


def test_roles_are_kept_where_placement_is_not_elastic() -> None:
    held = make_held()
    decision = plan(make_state([held]), elastic=False).dispatch[held.id]
    assert lanes(decision) == ("p", "d")


def test_a_hand_off_that_buys_nothing_is_skipped() -> None:
    held = make_held()
    prefill, decode = lanes(plan(make_state([held])).dispatch[held.id])
    assert prefill == decode


def test_a_tight_decode_leaves_a_worker_whose_batches_cost_much_each() -> None:
    held = make_held(objective=due_in(5.0, tpot_s=0.06))
    fleet = [
        make_worker(id="p", latency=SLOW_BASE),
        make_worker(id="d", prefers=Stage.DECODE, latency=SLOW_BASE),
    ]
    assert lanes(plan(state_of([held], fleet)).dispatch[held.id]) == ("p", "d")


def test_a_prompt_is_computed_in_a_decode_worker_s_slack_when_the_others_are_busy() -> None:
    held = make_held(objective=due_in(0.2))
    assert plan(make_state([held], busy("p"))).dispatch[held.id].prefill_worker == "d"
    assert held.id not in plan(make_state([held], busy("p")), elastic=False, best_effort_share=0.0).dispatch


def test_tight_decodes_are_packed_on_one_worker() -> None:
    fleet = [make_worker(id=name, prefers=Stage.DECODE, latency=SLOW_BASE) for name in ("d1", "d2")]
    fleet.append(make_worker(id="p", latency=SLOW_BASE, may=frozenset({Stage.PREFILL})))
    tight = Objective(99.0, 1.0, 0.06)
    running = [make_running(objective=tight, prefill_worker="p", decode_worker="d2", first_token_s=99.9)]
    held = make_held(objective=due_in(5.0, tpot_s=0.06))
    static = {"elastic": True, "longest_batch_steps": 6.0}
    placed = plan(state_of([held], fleet, running), **static).dispatch[held.id]
    assert placed.decode_worker == "d2"
    alone = plan(state_of([held], fleet, running), decode_packing=False, **static).dispatch[held.id]
    assert alone.decode_worker == "d1"


def test_under_lasting_load_no_tight_decode_stays_alone_on_a_worker_because_its_hand_off_is_too_late() -> None:
    fleet = [
        make_worker(id="p", latency=SLOW_BASE),
        make_worker(id="d", prefers=Stage.DECODE, latency=SLOW_BASE, may=frozenset({Stage.DECODE}), pull_s=1e-4),
    ]
    tight = Objective(99.0, 1.0, 0.06)
    running = [make_running(objective=tight, decode_worker="d", first_token_s=99.9) for _ in range(4)]
    held = make_held(need_tokens=500, objective=due_in(0.12, tpot_s=0.06))
    state = state_of([held], fleet, running)
    assert plan(state).dispatch[held.id].verdict is Verdict.ADMITTED
    loaded = replace(state, arriving=5000.0)
    assert plan(loaded).dispatch[held.id].verdict is Verdict.DEFERRED
    assert plan(loaded, spoil_s=0.0).dispatch[held.id].verdict is Verdict.ADMITTED
    soon_enough = replace(held, objective=due_in(0.5, tpot_s=0.06))
    assert lanes(plan(replace(loaded, held=[soon_enough])).dispatch[held.id]) == ("p", "d")


def test_kv_is_never_handed_to_an_engine_with_another_fingerprint() -> None:
    fleet = [
        make_worker(id="p", fingerprint="a", may=frozenset({Stage.PREFILL})),
        make_worker(id="d1", prefers=Stage.DECODE, fingerprint="b", may=frozenset({Stage.DECODE})),
        make_worker(id="d2", prefers=Stage.DECODE, fingerprint="a", may=frozenset({Stage.DECODE})),
    ]
    held = make_held()
    assert lanes(plan(state_of([held], fleet)).dispatch[held.id]) == ("p", "d2")


def test_a_session_goes_back_to_the_worker_that_has_its_prefix() -> None:
    held = make_held(need_tokens=2000, prefix_worker="b", prefix_tokens=1500)
    assert plan(state_of([held], BOTH)).dispatch[held.id].prefill_worker == "b"


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
