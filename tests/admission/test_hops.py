"""The hop estimate follows what was seen, keeps what is usual, and never falls below its floor."""

from admission.hops import LEARN_EVERY, MOST_S, MOST_USUAL_S, PRIOR, WINDOW_S, HopEstimate


def seen(late_s: float, times: int) -> HopEstimate:
    hops = HopEstimate(0.002)
    for _ in range(times):
        hops.observe(late_s, 100.0)
    return hops


def test_it_is_the_floor_until_the_first_token_and_what_was_seen_from_then_on() -> None:
    assert seen(0.012, 0).seconds(100.0) == 0.002
    assert seen(0.012, 1).seconds(100.0) == 0.012
    assert seen(0.012, 1).seconds(100.0 + WINDOW_S + 1) == 0.012


def test_without_recent_requests_it_is_what_the_quickest_quarter_had() -> None:
    hops = HopEstimate(0.002)
    for number in range(2 * LEARN_EVERY):
        hops.observe(0.01 if number % 3 == 0 else 0.5, 100.0)
    assert hops.seconds(100.0) == 0.5
    assert hops.seconds(100.0 + WINDOW_S + 1) == 0.01


def test_after_nothing_but_bursts_it_is_bounded() -> None:
    assert seen(0.5, LEARN_EVERY).seconds(100.0 + WINDOW_S + 1) == MOST_USUAL_S


def test_a_few_slow_starts_are_bounded_and_many_are_not() -> None:
    assert seen(0.5, PRIOR).seconds(100.0) == MOST_USUAL_S
    assert seen(0.5, 2 * PRIOR).seconds(100.0) == 0.5


def test_it_is_what_half_of_them_exceed_whatever_the_worst_are() -> None:
    hops = HopEstimate(0.0)
    for number in range(PRIOR, 101):
        hops.observe(number / 1000 if number <= 60 else 1.0, 100.0)
    assert hops.seconds(100.0) == 0.05


def test_early_tokens_do_not_lower_it_below_the_floor_and_outliers_are_bounded() -> None:
    assert seen(-1.0, 20).seconds(100.0) == 0.002
    assert seen(60.0, 20).seconds(100.0) == MOST_S
