from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.slo import Objective, Pace, attained, mean_tpot_s, pace, slack_s, thinking_tokens

CHAT = Objective(arrival_s=10.0, ttft_s=1.0, tpot_s=0.1)
THINKER = Objective(arrival_s=10.0, ttft_s=1.0, tpot_s=0.1, thinking_tpot_s=0.05)


def steady(count: int, first_s: float, tpot_s: float) -> list[float]:
    return [first_s + tpot_s * number for number in range(count)]


def test_the_first_token_is_due_at_arrival_plus_ttft() -> None:
    assert CHAT.prefill_due_s == 11.0
    assert CHAT.token_due_s(1, first_token_s=10.2) == 11.0


def test_token_deadlines_count_from_the_first_due_time() -> None:
    assert CHAT.token_due_s(11, first_token_s=10.2) == pytest.approx(12.0)


def test_after_a_late_first_token_they_count_from_it() -> None:
    assert CHAT.token_due_s(11, first_token_s=12.0) == pytest.approx(13.0)


def test_thinking_has_its_own_pace() -> None:
    assert THINKER.token_due_s(21, 10.5, thinking_tokens=None) == pytest.approx(11 + 20 * 0.05)
    assert THINKER.token_due_s(11, 10.5, thinking_tokens=11) == pytest.approx(11 + 10 * 0.05)
    assert THINKER.token_due_s(21, 10.5, thinking_tokens=11) == pytest.approx(11 + 10 * 0.05 + 10 * 0.1)
    assert THINKER.token_due_s(21, 10.5, thinking_tokens=0) == pytest.approx(11 + 20 * 0.1)


def test_without_a_thinking_pace_thinking_changes_nothing() -> None:
    assert CHAT.token_due_s(21, 10.5, thinking_tokens=None) == CHAT.token_due_s(21, 10.5)


def test_the_pace_of_a_stage() -> None:
    assert (THINKER.current_tpot_s(thinking=True), THINKER.current_tpot_s(thinking=False)) == (0.05, 0.1)
    assert CHAT.current_tpot_s(thinking=True) == 0.1
    assert (THINKER.tightest_tpot_s, CHAT.tightest_tpot_s) == (0.05, 0.1)
    assert replace(THINKER, thinking_tpot_s=0.5).tightest_tpot_s == 0.1


def test_slack_is_time_left() -> None:
    assert slack_s(due_s=3.0, predicted_s=2.0) == 1.0
    assert slack_s(due_s=2.0, predicted_s=3.0) == -1.0


def test_no_token_is_no_attainment() -> None:
    assert not attained(CHAT, [])


@pytest.mark.parametrize(("first_s", "expected"), [(10.0, True), (11.0, True), (11.049, True), (11.051, False)])
def test_the_first_token_has_five_percent_of_the_ttft(first_s: float, expected: bool) -> None:
    assert attained(CHAT, [first_s]) is expected


@pytest.mark.parametrize(("tpot_s", "expected"), [(0.05, True), (0.1, True), (0.1049, True), (0.1051, False)])
def test_tokens_have_five_percent_of_the_tpot(tpot_s: float, expected: bool) -> None:
    assert attained(CHAT, steady(30, 11.0, tpot_s)) is expected


def test_an_early_first_token_gives_room_to_the_rest() -> None:
    assert attained(CHAT, steady(10, 10.0, 0.2))


@pytest.mark.parametrize(("late", "expected"), [(5, True), (10, False), (15, True), (20, False), (25, False)])
def test_each_tenth_and_the_last_token_are_checked(late: int, expected: bool) -> None:
    times = steady(25, 11.0, 0.1)
    times[late - 1] += 0.5
    assert attained(CHAT, times) is expected


def test_thinking_tokens_are_held_to_the_thinking_pace() -> None:
    answer_after = [*steady(20, 11.0, 0.05), *steady(10, 11.0 + 20 * 0.05, 0.1)]
    assert attained(THINKER, answer_after, thinking_tokens=20)
    assert not attained(THINKER, steady(30, 11.0, 0.1), thinking_tokens=20)
    assert attained(THINKER, steady(30, 11.0, 0.1), thinking_tokens=0)


def test_no_tolerance_is_exact() -> None:
    assert attained(CHAT, [11.0], tolerance=0.0)
    assert not attained(CHAT, [11.001], tolerance=0.0)


@given(st.lists(st.floats(10.0, 20.0), min_size=1, max_size=40).map(sorted), st.floats(0.0, 1.0))
def test_what_comes_earlier_is_attained_too(times: list[float], factor: float) -> None:
    def closer(token_times_s: Sequence[float]) -> list[float]:
        first_s = token_times_s[0]
        return [first_s + (time_s - first_s) * factor for time_s in token_times_s]

    if attained(CHAT, times):
        assert attained(CHAT, closer(times))


@given(st.integers(1, 200), st.integers(1, 200), st.floats(9.0, 20.0), st.none() | st.integers(0, 100))
def test_deadlines_never_go_back(one: int, other: int, first_s: float, thinking: int | None) -> None:
    early, late = sorted((one, other))
    assert THINKER.token_due_s(early, first_s, thinking) <= THINKER.token_due_s(late, first_s, thinking)
    assert THINKER.token_due_s(early, first_s, thinking) >= THINKER.prefill_due_s


def test_mean_tpot_is_the_time_between_tokens() -> None:
    assert mean_tpot_s([1.0, 2.0, 4.0]) == 1.5
    assert mean_tpot_s([1.0]) is None
    assert mean_tpot_s([]) is None


@pytest.mark.parametrize(
    ("tokens", "start", "end", "expected"),
    [
        ((), None, None, 0),
        ((1, 2), None, None, 0),
        ((), 5, 7, None),
        ((1, 2), None, 7, None),
        ((1, 2, 7, 3), None, 7, 3),
        ((5, 2, 7, 3), 5, 7, 3),
        ((5, 2), 5, 7, None),
        ((1, 5, 7, 3), 5, 7, 0),
    ],
)
def test_thinking_lasts_up_to_its_end_token_if_it_began(
    tokens: tuple[int, ...], start: int | None, end: int | None, expected: int | None
) -> None:
    assert thinking_tokens(tokens, start, end) == expected


def test_each_stage_has_its_own_achieved_pace() -> None:
    times_s = [*steady(11, 10.0, 0.02), *steady(10, 10.25, 0.05)]
    both = pace(times_s, 11)
    assert both.thinking_s == pytest.approx(0.02)
    assert both.answer_s == pytest.approx(0.05)
    assert pace(times_s, 0) == pace(times_s, 1) == Pace(None, mean_tpot_s(times_s))
    assert pace(times_s, None) == Pace(mean_tpot_s(times_s), None)
    assert pace([], 0) == Pace(None, None)
