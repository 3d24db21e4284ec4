"""Best effort: what runs without a promise, when, and who is told that it will not."""

import math

from common.messages import Verdict
from common.slo import Objective
from tests.admission.ours_states import NOW_S, busy, due_in, plan, state_of
from tests.factories import make_held, make_running, make_state, make_worker


def test_work_without_a_promise_runs_on_an_idle_worker() -> None:
    held = make_held(objective=None)
    decision = plan(make_state([held])).dispatch[held.id]
    assert (decision.verdict, decision.reason) == (Verdict.DEFERRED, "best_effort")


def test_under_load_each_worker_has_one_best_effort_prompt_and_no_more() -> None:
    held = [make_held(objective=None, arrival_s=NOW_S - 6) for _ in range(3)]
    state = state_of(held, [make_worker(id="a")], busy("a"))
    assert list(plan(state).dispatch) == [held[0].id]
    assert not plan(state, best_effort_share=0.0).dispatch


def test_best_effort_shares_a_busy_worker_only_after_a_while() -> None:
    held = make_held(objective=None, arrival_s=NOW_S - 2)
    state = state_of([held], [make_worker(id="a")], busy("a"))
    assert not plan(state).dispatch
    assert held.id in plan(state, best_effort_wait_s=2.0).dispatch
    assert held.id in plan(state, NOW_S + 4).dispatch
    assert held.id in plan(state_of([held], [make_worker(id="a")])).dispatch


def test_deferred_work_shares_a_busy_worker_the_sooner_the_tighter_its_ttft() -> None:
    """A chat turn that lost its promise feels a second of waiting; a long summary does not."""
    came_s = NOW_S - 1.4
    tight = make_held(objective=Objective(came_s, 0.3, 0.1), deferred=True, arrival_s=came_s)
    loose = make_held(objective=Objective(came_s, 0.4, 0.1), deferred=True, arrival_s=came_s)
    state = state_of([loose, tight], [make_worker(id="a")], busy("a"))
    assert list(plan(state).dispatch) == [tight.id]
    assert not plan(state, best_effort_wait_ttft=5.0).dispatch
    assert not plan(state, best_effort_wait_s=5.0, best_effort_wait_ttft=math.inf).dispatch


def test_the_longest_waiting_goes_first_and_offline_work_after_deferred_work() -> None:
    offline = make_held(objective=None, arrival_s=NOW_S - 50, patience_s=1e5)
    late = make_held(objective=due_in(0.001), deferred=True, arrival_s=NOW_S - 5)
    later = make_held(objective=due_in(0.001), deferred=True, arrival_s=NOW_S - 1)
    state = state_of([offline, later, late], [make_worker(id="a")], busy("a"))
    assert list(plan(state).dispatch) == [late.id]
    assert list(plan(state, offline_lag_s=10.0).dispatch) == [offline.id]


def test_what_would_wait_longer_than_its_patience_is_told_so_at_once() -> None:
    held = make_held(objective=due_in(0.5), patience_s=0.6)
    outcome = plan(state_of([held], [make_worker(id="a")], busy("a")), best_effort_share=0.0)
    assert outcome.reject[held.id].reason.startswith("patience")
    assert held.id not in outcome.defer


def test_best_effort_leaves_kv_to_promises_but_takes_none_that_is_used() -> None:
    filler = make_running(objective=None, prefill_worker="a", decode_worker="a", context_tokens=1000, max_tokens=100)
    small = make_worker(id="a", total_blocks=80)
    promised, loose = make_held(need_tokens=500), make_held(need_tokens=500, objective=None)
    assert promised.id in plan(state_of([promised], [small], [filler])).dispatch
    assert loose.id not in plan(state_of([loose], [small], [filler])).dispatch
