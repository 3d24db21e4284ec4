"""The product's policy: on which workers a request is computed, and when it is sent there."""

import math
from dataclasses import replace
from typing import Any

import pytest

from common.latency_model import LatencyModel, Piece
from common.messages import Stage, Verdict
from common.slo import Objective
from tests.admission.ours_states import BOTH, NOW_S, SLOW_BASE, busy, due_in, lanes, plan, state_of
from tests.factories import FAST, make_held, make_running, make_state, make_worker


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
