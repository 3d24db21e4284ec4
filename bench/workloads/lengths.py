"""Token counts with a published mean, standard deviation and 99th percentile.

The body is a lognormal clipped at the 99th percentile. Where that leaves too few long ones (a heavier tail than a
lognormal of this mean and deviation has), a small share is drawn around the 99th percentile. Location and
scale of the body are solved for, so that mean and deviation of the whole come out as published.
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TAIL_SHARE = 0.0125
TAIL = (0.98, 1.04)
"""Where the tail lies, as shares of the 99th percentile: a fifth of it is above, so that is where p99 falls."""

CLOSE = 0.05
_GRID = 2000
_STEPS = 50


@dataclass(frozen=True, slots=True)
class Lengths:
    """Published statistics, in tokens. Without a published p99 the longest is ``cap``."""

    mean: float
    std: float
    p99: float | None = None
    cap: float | None = None

    @property
    def most(self) -> float:
        """The longest of the body."""
        return self.p99 or self.cap or math.inf

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """That many lengths, at least 1 each."""
        body = _body(self)
        drawn = np.minimum(np.exp(body.mu + body.sigma * rng.standard_normal(count)), self.most)
        tail = rng.random(count) < body.tail_share
        drawn = np.where(tail, rng.uniform(*TAIL, count) * self.most if self.p99 else 0.0, drawn)
        return cast(NDArray[np.int64], np.maximum(1, np.rint(drawn)).astype(np.int64))


@dataclass(frozen=True, slots=True)
class _Body:
    mu: float
    sigma: float
    tail_share: float


@functools.cache
def _body(lengths: Lengths) -> _Body:
    mu, sigma = _fit(lengths.mean, lengths.std, lengths.most)
    if lengths.p99 is None or math.exp(mu + sigma * NormalDist().inv_cdf(0.99)) >= lengths.p99 * (1 - CLOSE):
        return _Body(mu, sigma, 0.0)
    tail_mean, tail_var = lengths.p99 * sum(TAIL) / 2, (lengths.p99 * (TAIL[1] - TAIL[0])) ** 2 / 12
    mean = (lengths.mean - TAIL_SHARE * tail_mean) / (1 - TAIL_SHARE)
    square = lengths.std**2 + lengths.mean**2 - TAIL_SHARE * (tail_var + tail_mean**2)
    mu, sigma = _fit(mean, math.sqrt(max(1.0, square / (1 - TAIL_SHARE) - mean**2)), lengths.most)
    return _Body(mu, sigma, TAIL_SHARE)


def _normal_grid() -> Floats:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / _GRID) for i in range(_GRID)])


def _fit(mean: float, std: float, most: float) -> tuple[float, float]:
    """Location and scale of the lognormal that has this mean and deviation once it is clipped at ``most``."""
    grid = _normal_grid()
    low, high = 1e-3, 4.0
    for _ in range(_STEPS):
        sigma = (low + high) / 2
        drawn = np.minimum(np.exp(_location(grid, sigma, mean, most) + sigma * grid), most)
        low, high = (sigma, high) if drawn.std() < std else (low, sigma)
    return _location(grid, low, mean, most), low


def _location(grid: Floats, sigma: float, mean: float, most: float) -> float:
    low, high = math.log(mean) - 12.0, math.log(mean) + 12.0
    for _ in range(_STEPS):
        mu = (low + high) / 2
        low, high = (mu, high) if np.minimum(np.exp(mu + sigma * grid), most).mean() < mean else (low, mu)
    return (low + high) / 2
