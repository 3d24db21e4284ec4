"""Earliest deadline first: what is promised, refused, deferred and held."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from admission.policies.edf import EarliestDeadlineFirst
from common.messages import Overload, Stage, Verdict
from common.slo import Objective
from tests.factories import FAST, make_held, make_running, make_state, make_worker

NOW_S = 100.0
plan = EarliestDeadlineFirst().plan


def due_in(seconds: float, tpot_s: float = 0.1) -> Objective:
    return Objective(arrival_s=NOW_S, ttft_s=seconds, tpot_s=tpot_s)


def test_a_feasible_request_is_admitted_and_sent_to_the_workers_that_prefer_its_stages() -> None:
    held = make_held()
    decision = plan(make_state([held]), NOW_S).dispatch[held.id]
    assert (decision.verdict, decision.prefill_worker, decision.decode_worker) == (Verdict.ADMITTED, "p", "d")


def test_the_predicted_ttft_is_the_prefill_time_plus_the_hops_when_idle() -> None:
    held = make_held(need_tokens=100)
    decision = plan(make_state([held]), NOW_S).dispatch[held.id]
    assert decision.predicted_ttft_ms is not None
    assert abs(decision.predicted_ttft_ms - (FAST.prefill_seconds(100, 2048) + 0.002) * 1e3) < 1e-6


def test_without_a_worker_for_a_stage_everything_is_held() -> None:
    only_prefill = make_worker(id="p", may=frozenset({Stage.PREFILL}))
    outcome = plan(make_state([make_held()], workers={"p": only_prefill}), NOW_S)
    assert (outcome.dispatch, outcome.defer, outcome.reject) == ({}, {}, {})


def test_a_single_worker_that_may_do_both_keeps_its_requests() -> None:
    held = make_held()
    decision = plan(make_state([held], workers={"p": make_worker(id="p")}), NOW_S).dispatch[held.id]
    assert (decision.prefill_worker, decision.decode_worker) == ("p", "p")


def test_kv_is_never_handed_to_an_engine_with_another_fingerprint() -> None:
    workers = [
        make_worker(id="p", fingerprint="a"),
        make_worker(id="d1", prefers=Stage.DECODE, fingerprint="b"),
        make_worker(id="d2", prefers=Stage.DECODE, fingerprint="a"),
    ]
    held = make_held()
    decision = plan(make_state([held], workers={worker.id: worker for worker in workers}), NOW_S).dispatch[held.id]
    assert decision.decode_worker == "d2"


def test_the_earliest_deadline_is_served_first() -> None:
    late, early = make_held(objective=due_in(3.0)), make_held(objective=due_in(0.5))
    outcome = plan(make_state([late, early]), NOW_S)
    assert list(outcome.dispatch) == [early.id, late.id]


def test_what_can_not_meet_its_ttft_behind_the_backlog_is_rejected_with_the_time_it_lacks() -> None:
    backlog = [make_running(todo_tokens=2000, context_tokens=2000) for _ in range(5)]
    held = make_held(objective=due_in(0.5), overload=Overload.REJECT)
    decision = plan(make_state([held], backlog), NOW_S).reject[held.id]
    lacking_s = 5 * FAST.prefill_seconds(2000, 2048) + FAST.prefill_seconds(100, 2048) + 0.002 - 0.5
    assert decision.reason == "prefill_capacity"
    assert decision.retry_after_s is not None
    assert abs(decision.retry_after_s - lacking_s) < 0.02


def test_a_prompt_that_is_half_done_counts_half() -> None:
    started = make_running(todo_tokens=2000, context_tokens=2000, dispatched_s=NOW_S - 0.1)
    held = make_held(need_tokens=2000, objective=due_in(5.0))
    wake_s = plan(make_state([held], [started]), NOW_S).wake_s
    assert wake_s is not None
    assert abs(wake_s - (NOW_S - 0.1 + FAST.prefill_seconds(2000, 2048) - 0.007)) < 0.01


def test_what_comes_back_after_retry_after_is_admitted() -> None:
    backlog_s = 5 * FAST.prefill_seconds(2000, 2048)
    backlog = [make_running(todo_tokens=2000, context_tokens=2000) for _ in range(5)]
    held = make_held(objective=due_in(0.5), overload=Overload.REJECT)
    retry_s = plan(make_state([held], backlog), NOW_S).reject[held.id].retry_after_s or 0.0
    left = [running for i, running in enumerate(backlog) if (i + 1) * backlog_s / 5 > retry_s]
    back = replace(held, arrival_s=NOW_S + retry_s, objective=replace(due_in(0.5), arrival_s=NOW_S + retry_s))
    outcome = plan(make_state([back], left), NOW_S + retry_s)
    assert back.id not in outcome.reject


def test_what_can_not_be_promised_is_deferred_once_and_stays_held() -> None:
    backlog = [make_running(todo_tokens=2000, context_tokens=2000) for _ in range(5)]
    held = make_held(objective=due_in(0.5))
    first = plan(make_state([held], backlog), NOW_S)
    again = plan(make_state([replace(held, deferred=True)], backlog), NOW_S)
    assert (list(first.defer), list(first.dispatch)) == ([held.id], [])
    assert (again.defer, again.dispatch) == ({}, {})


def test_deferred_work_runs_when_nothing_promised_waits() -> None:
    held = make_held(objective=due_in(0.001), deferred=True)
    decision = plan(make_state([held]), NOW_S).dispatch[held.id]
    assert (decision.verdict, decision.reason) == (Verdict.DEFERRED, "left_over_capacity")


def test_a_deferred_request_is_promoted_when_its_promise_becomes_possible() -> None:
    held = make_held(deferred=True)
    decision = plan(make_state([held]), NOW_S).dispatch[held.id]
    assert (decision.verdict, decision.reason) == (Verdict.ADMITTED, "promoted")


def test_best_effort_never_goes_before_a_promise() -> None:
    best_effort = make_held(objective=None, arrival_s=NOW_S - 50)
    promised = [make_held(need_tokens=2000) for _ in range(2)]
    outcome = plan(make_state([best_effort, *promised]), NOW_S)
    assert best_effort.id not in outcome.dispatch


def test_a_second_long_prompt_stays_held_until_its_worker_is_about_to_be_free() -> None:
    first, second = (make_held(need_tokens=2000, objective=due_in(5.0 + i)) for i in range(2))
    outcome = plan(make_state([first, second]), NOW_S)
    assert list(outcome.dispatch) == [first.id]
    assert outcome.wake_s is not None
    assert NOW_S < outcome.wake_s < NOW_S + FAST.prefill_seconds(2000, 2048)


def test_an_slo_below_the_zero_load_time_says_what_is_possible() -> None:
    held = make_held(objective=due_in(0.001), overload=Overload.REJECT)
    assert "slo_unattainable: TTFT is at least 17.1 ms" in plan(make_state([held]), NOW_S).reject[held.id].reason


def test_a_decoder_that_would_slow_others_below_their_tpot_is_not_promised() -> None:
    tight = [make_running(objective=due_in(1.0, tpot_s=0.006), decode_worker="d") for _ in range(5)]
    held = make_held()
    outcome = plan(make_state([held], tight), NOW_S)
    assert outcome.defer[held.id].reason == "decode_capacity"


def test_kv_is_not_promised_twice() -> None:
    fleet = zip("pd", Stage, strict=True)
    small = {name: make_worker(id=name, prefers=stage, total_blocks=20) for name, stage in fleet}
    requests = [make_held(need_tokens=100, max_tokens=100) for _ in range(3)]
    outcome = plan(make_state(requests, workers=small), NOW_S)
    assert len(outcome.dispatch) == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 3000), st.floats(0.01, 3.0), st.sampled_from(list(Overload))), min_size=1, max_size=30
    )
)
def test_whatever_is_admitted_is_predicted_to_be_in_time(requests: list[tuple[int, float, Overload]]) -> None:
    held = [make_held(need_tokens=n, objective=due_in(ttft), overload=overload) for n, ttft, overload in requests]
    outcome = plan(make_state(held), NOW_S)
    by_id = {item.id: item for item in held}
    for request_id, decision in outcome.dispatch.items():
        objective = by_id[request_id].objective
        if decision.verdict is Verdict.ADMITTED and objective is not None:
            assert decision.predicted_ttft_ms is not None
            assert decision.predicted_ttft_ms <= objective.ttft_s * 1e3 + 1e-6
    assert not set(outcome.dispatch) & (set(outcome.reject) | set(outcome.defer))
