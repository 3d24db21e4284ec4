"""How much work comes is a mean that forgets."""

import math

import pytest

from admission.arriving import MEMORY_S, Arriving


def test_steady_arrivals_are_their_rate() -> None:
    arriving = Arriving()
    for step in range(1000):
        arriving.add(50, step / 10)
    assert arriving.rate(100.0) == pytest.approx(500.0, rel=0.02)


def test_nothing_has_come_at_first_and_what_came_is_forgotten() -> None:
    arriving = Arriving()
    assert arriving.rate(7.0) == 0.0
    arriving.add(1000, 7.0)
    assert arriving.rate(7.0) == 1000 / MEMORY_S
    assert arriving.rate(7.0 + MEMORY_S) == pytest.approx(1000 / MEMORY_S / math.e)


def test_a_clock_that_goes_back_makes_nothing_of_it() -> None:
    arriving = Arriving()
    arriving.add(1000, 7.0)
    assert arriving.rate(6.0) == arriving.rate(7.0)
