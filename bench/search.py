"""Finding capacity: the highest rate that still holds, by bisection; and the best of several tunings, by a race."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

T = TypeVar("T")

PRECISION = 0.05
MOST_DOUBLINGS = 12
MOST_LAPS = 20
STUDENT_975 = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t by degrees of freedom."""


def highest(holds: Callable[[float], bool], start: float, precision: float = PRECISION) -> float:
    """The highest rate found to hold, at most ``precision`` below one that does not; 0.0 if none does.

    Brackets from ``start`` by steps that double, then bisects in logarithms.
    """
    step = 1.2
    low = high = start
    if holds(start):
        for _ in range(MOST_DOUBLINGS):
            high = low * step
            if not holds(high):
                break
            low, step = high, step**2 if step < 4 else 4.0
        else:
            return low
    else:
        for _ in range(MOST_DOUBLINGS):
            low = high / step
            if holds(low):
                break
            high, step = low, step**2 if step < 4 else 4.0
        else:
            return 0.0
    while high / low > 1 + precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def race(candidates: Sequence[T], score: Callable[[T, float], float], least: float, start: float, step: float) -> T:
    """The candidate that still scores ``least`` at the highest rate; rates go up by ``step`` until one is left.

    After ``MOST_LAPS`` the first that is left wins: in a window with few requests, or none, no rate is too high.
    """
    left, rate = list(candidates), start
    for _ in range(MOST_LAPS):
        if len(left) == 1:
            break
        scores = [score(candidate, rate) for candidate in left]
        passed = [candidate for candidate, found in zip(left, scores, strict=True) if found >= least]
        if not passed:
            return left[max(range(len(left)), key=lambda i: scores[i])]
        left, rate = passed, rate * step
    return left[0]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % confidence interval over seeds (as wide as can be for a single one)."""

    mean: float
    low: float
    high: float


def geometric(values: Sequence[float]) -> Estimate:
    """Geometric mean over seeds, by Student's t on logarithms; 0 if any value is 0."""
    if not values or min(values) <= 0:
        return Estimate(0.0, 0.0, max(values, default=0.0))
    logs = [math.log(value) for value in values]
    mean = fmean(logs)
    if len(logs) == 1:
        return Estimate(math.exp(mean), 0.0, math.inf)
    quantile = STUDENT_975[len(logs) - 1] if len(logs) <= len(STUDENT_975) else 1.96
    half = quantile * stdev(logs) / math.sqrt(len(logs))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
