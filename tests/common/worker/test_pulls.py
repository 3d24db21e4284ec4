"""The pace of pulls, from what single pulls took."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.worker.pulls import PullPace


def pace_of(*pulls: tuple[float, int]) -> PullPace:
    pace = PullPace()
    for seconds, tokens in pulls:
        pace.observe(seconds, tokens)
    return pace


def test_it_is_unknown_until_a_usual_pull_can_be_told_from_the_first() -> None:
    assert pace_of((0.1, 100), (0.1, 100)).s_per_token == 0
    assert pace_of((9.0, 100), (0.1, 100), (0.1, 100)).s_per_token == pytest.approx(0.001)


def test_long_prompts_weigh_more_than_what_every_pull_takes() -> None:
    pulls = [(0.01 + 1e-4 * tokens, tokens) for tokens in (10, 1000) * 100]
    assert pace_of(*pulls).s_per_token == pytest.approx(0.0001 + 0.01 / 505, rel=0.1)


def test_a_stall_moves_it_little_and_a_slower_link_moves_it_all_the_way() -> None:
    usual = [(0.1, 100)] * 20
    assert pace_of(*usual, (1000.0, 100)).s_per_token == pytest.approx(0.0013)
    assert pace_of(*usual, *[(1.0, 100)] * 80).s_per_token == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("pull", [(-1.0, 100), (1.0, 0), (math.nan, 100), (math.inf, 100)])
def test_what_can_not_be_is_ignored(pull: tuple[float, int]) -> None:
    assert pace_of(*[(0.1, 100)] * 3, pull).s_per_token == pytest.approx(0.001)


@given(st.lists(st.tuples(st.floats(), st.integers(-10, 10**6)), max_size=30))
def test_it_is_never_negative_and_always_a_number(pulls: list[tuple[float, int]]) -> None:
    assert 0 <= pace_of(*pulls).s_per_token < math.inf
