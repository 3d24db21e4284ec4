import random

import pytest

from common.engine.margin import LEAST, MOST, Margin


def after(steps: int, spread: float, bias: float = 1.0) -> float:
    rng, margin = random.Random(1), Margin()
    for _ in range(steps):
        margin.observe(0.01, 0.01 * bias * rng.gauss(1.0, spread))
    return margin.value


def test_it_is_wide_until_steps_are_known() -> None:
    assert Margin().value == MOST
    assert after(10, 0.0) > 0.2


def test_it_follows_how_far_steps_are_from_what_was_predicted() -> None:
    assert after(1000, 0.0) == LEAST
    assert after(1000, 0.06) == pytest.approx(0.12, abs=0.03)
    assert after(1000, 0.5) == MOST
    assert after(1000, 0.0, bias=1.1) == pytest.approx(0.2, abs=0.01)


def test_one_that_stood_still_is_forgotten() -> None:
    margin = Margin()
    for _ in range(1000):
        margin.observe(0.01, 0.01)
    margin.observe(0.01, 10.0)
    assert margin.value < MOST
    for _ in range(1000):
        margin.observe(0.01, 0.01)
    assert margin.value == LEAST


def test_a_setting_fixes_it() -> None:
    margin = Margin(0.4)
    margin.observe(0.01, 0.01)
    margin.observe(0.0, 0.01)
    assert margin.value == 0.4
