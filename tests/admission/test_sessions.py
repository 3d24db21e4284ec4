"""Rounds of a session share a fate and a prefix."""

from admission.sessions import Sessions
from common.messages import Progress
from common.slo import Objective
from tests.factories import make_held, make_running


def ended_at(time_s: float, generated: int = 10) -> Progress:
    return Progress("r1", 1, "w", generated, True, time_s)


def after_one_round(time_s: float) -> Sessions:
    sessions = Sessions()
    sessions.dispatched(make_held(id="r1", session_id="s", need_tokens=200), "p7")
    sessions.ended(make_running(id="r1", first_token_s=99.5), ended_at(time_s))
    return sessions


def test_the_next_round_prefers_the_worker_that_has_its_prefix() -> None:
    held = after_one_round(100.0).apply(make_held(session_id="s", need_tokens=300))
    assert (held.prefix_worker, held.prefix_tokens, held.round, held.missed_round) == ("p7", 200, 1, False)


def test_a_round_that_was_late_makes_the_later_ones_best_effort() -> None:
    assert after_one_round(105.0).apply(make_held(session_id="s")).missed_round


def test_requests_without_a_session_are_left_alone() -> None:
    held = make_held()
    assert after_one_round(100.0).apply(held) is held


def test_only_the_sessions_seen_last_are_kept() -> None:
    sessions = Sessions(most=2)
    for name in "abc":
        sessions.dispatched(make_held(session_id=name), "p")
    assert sessions.apply(make_held(session_id="a")).round == 0
    assert sessions.apply(make_held(session_id="c")).round == 1


def test_a_round_that_thought_is_not_late_for_the_tighter_pace_of_thinking() -> None:
    sessions = Sessions()
    sessions.dispatched(make_held(id="r1", session_id="s"), "p7")
    objective = Objective(99.0, 1.0, 0.1, thinking_tpot_s=0.02)
    sessions.ended(make_running(id="r1", objective=objective, first_token_s=99.5), ended_at(100.8))
    assert not sessions.apply(make_held(session_id="s")).missed_round
