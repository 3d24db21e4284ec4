"""The hop estimate follows what was seen, forgets it, and never falls below its floor."""

from admission.hops import MOST_S, WINDOW_S, HopEstimate


def test_without_recent_requests_it_is_the_floor() -> None:
    hops = HopEstimate(0.002)
    assert hops.seconds(100.0) == 0.002
    hops.observe(0.5, 100.0)
    assert hops.seconds(100.0 + WINDOW_S + 1) == 0.002


def test_it_leaves_room_for_nine_of_ten() -> None:
    hops = HopEstimate(0.002)
    for number in range(101):
        hops.observe(number / 1000, 100.0)
    assert hops.seconds(100.0) == 0.09


def test_early_tokens_do_not_lower_it_below_the_floor_and_one_outlier_is_bounded() -> None:
    hops = HopEstimate(0.002)
    hops.observe(-1.0, 100.0)
    assert hops.seconds(100.0) == 0.002
    hops = HopEstimate(0.002)
    hops.observe(60.0, 100.0)
    assert hops.seconds(100.0) == MOST_S
