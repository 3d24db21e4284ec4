import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.search import MOST_LAPS, geometric, highest, race


@given(limit=st.floats(0.01, 500.0), start=st.floats(0.01, 500.0))
def test_capacity_is_found_to_five_percent_from_any_start(limit: float, start: float) -> None:
    found = highest(lambda rate: rate <= limit, start)
    assert found <= limit < found * 1.0501


def test_nothing_holds_is_a_capacity_of_zero() -> None:
    assert highest(lambda rate: False, 8.0) == 0.0


def test_what_always_holds_ends() -> None:
    assert highest(lambda rate: True, 1.0) > 1000.0


def test_few_runs_are_enough_from_a_good_start() -> None:
    asked = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= 10.0

    highest(holds, 8.0)
    assert len(asked) <= 6


def test_the_race_is_won_by_who_holds_at_the_highest_rate() -> None:
    limits = {"a": 3.0, "b": 9.0, "c": 6.0}
    assert race(list(limits), lambda name, rate: float(rate <= limits[name]), 0.9, 1.0, 1.2) == "b"


def test_of_those_that_fail_at_once_the_best_wins() -> None:
    scores = {"a": 0.2, "b": 0.5}
    assert race(list(scores), lambda name, _: scores[name], 0.9, 1.0, 1.2) == "b"


def test_a_race_in_which_nobody_fails_ends() -> None:
    asked = []

    def score(name: str, rate: float) -> float:
        asked.append(rate)
        return 1.0 if name != "slow" else float(rate <= 2.0)

    assert race(["slow", "first", "second"], score, 0.9, 1.0, 1.15) == "first"
    assert len(set(asked)) == MOST_LAPS


def test_the_interval_is_students_on_logarithms() -> None:
    found = geometric([2.0, 4.0, 8.0])
    half = 4.303 * math.log(2) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((4.0, 4 / math.exp(half), 4 * math.exp(half)))


@given(st.lists(st.floats(0.1, 100.0), min_size=2, max_size=9))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    found = geometric(values)
    assert found.low <= found.mean * 1.000001
    assert found.mean <= found.high * 1.000001
    assert math.log(found.mean) == pytest.approx(fmean(map(math.log, values)), abs=1e-9)


def test_a_system_that_never_holds_has_no_capacity() -> None:
    assert geometric([3.0, 0.0]).mean == 0.0


def test_one_seed_tells_nothing_of_the_spread() -> None:
    assert (geometric([3.0]).low, geometric([3.0]).high) == (0.0, math.inf)
