"""When requests arrive: arrival processes, each a function of rate, duration and a seeded generator.

All return ascending times in seconds, below the duration.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DRAWS = 4096
_IDLE_RATE = 1e-9


def poisson(rate: float, seconds: float, rng: np.random.Generator) -> Floats:
    """Independent arrivals at ``rate`` per second."""
    return _ticks(rate * seconds, 1.0, rng) / rate


def _ticks(until: float, cv: float, rng: np.random.Generator) -> Floats:
    """A renewal process of rate 1 whose gaps have this CV.

    A later end or another clock only adds arrivals and moves them.
    """
    shape = 1 / cv**2
    times = np.zeros(0)
    while not len(times) or times[-1] < until:
        last = times[-1] if len(times) else 0.0
        times = np.concatenate((times, last + np.cumsum(rng.gamma(shape, 1 / shape, _DRAWS))))
    return times[times < until]


def gamma(rate: float, seconds: float, cv: float, rng: np.random.Generator) -> Floats:
    """A renewal process whose gaps have the given coefficient of variation."""
    return _ticks(rate * seconds, cv, rng) / rate


@dataclass(frozen=True, slots=True)
class Bursts:
    """On and off phases of these mean lengths (exponential), and a coefficient of variation of gaps.

    :func:`bursty` has gaps of this CV within on phases, :func:`phased` over all.
    """

    cv: float = 3.0
    on_s: float = 2.0
    off_s: float = 4.0

    def __post_init__(self) -> None:
        if not (self.cv > 1 and self.on_s > 0 and self.off_s > 0):
            raise ValueError("bursts need a CV above 1 and phases of some length")


@dataclass(frozen=True, slots=True)
class Phases:
    """Rates and mean lengths of on and off phases."""

    on_rate: float
    off_rate: float
    on_s: float
    off_s: float

    @property
    def cv(self) -> float:
        """Coefficient of variation of the gaps of this Markov-modulated Poisson process."""
        share = np.array([self.on_s, self.off_s]) / (self.on_s + self.off_s)
        rates = np.array([self.on_rate, self.off_rate])
        mean_rate = float(share @ rates)
        leave = np.array([1 / self.on_s, 1 / self.off_s])
        inverse = np.linalg.inv(np.diag(rates + leave) - np.array([[0, leave[0]], [leave[1], 0]]))
        second = 2 * float((share * rates / mean_rate) @ inverse @ inverse @ np.ones(2))
        return math.sqrt(max(0.0, second * mean_rate**2 - 1))


def phases_of(rate: float, bursts: Bursts) -> Phases:
    """Phases that give bursts of the wanted CV at this mean rate."""
    on_share = bursts.on_s / (bursts.on_s + bursts.off_s)

    def phases(off: float, stretch: float = 1.0) -> Phases:
        on_rate = rate * (1 - (1 - on_share) * off) / on_share
        return Phases(on_rate, rate * off, bursts.on_s * stretch, bursts.off_s * stretch)

    if phases(0.0).cv <= bursts.cv:  # Kuczura's interrupted Poisson process: cv^2 = 1 + 2*rate*cycle*(1 - on)^2
        cycle_s = (bursts.cv**2 - 1) / (2 * rate * (1 - on_share) ** 2)
        return phases(0.0, max(1.0, cycle_s / (bursts.on_s + bursts.off_s)))
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if phases(middle).cv > bursts.cv else (low, middle)
    return phases(low)


def bursty(rate: float, seconds: float, bursts: Bursts, rng: np.random.Generator) -> Floats:
    """Clumps in on phases: gaps there have the CV, and nothing arrives in off phases."""
    cycle_s = bursts.on_s + bursts.off_s
    return _modulated(Phases(rate * cycle_s / bursts.on_s, 0.0, bursts.on_s, bursts.off_s), bursts.cv, seconds, rng)


def phased(rate: float, seconds: float, bursts: Bursts, rng: np.random.Generator) -> Floats:
    """On and off phases without clumps: Poisson in each, at rates that give all gaps together the CV.

    Where phases are too short for it at a low rate, nothing arrives in off phases and both are longer in proportion.
    """
    return _modulated(phases_of(rate, bursts), 1.0, seconds, rng)


def _modulated(phases: Phases, cv: float, seconds: float, rng: np.random.Generator) -> Floats:
    """Phases begin in either by its share, and do not depend on how much arrives."""
    phases_rng, ticks_rng = rng.spawn(2)
    on = phases_rng.random() < phases.on_s / (phases.on_s + phases.off_s)
    times, clock = [0.0], [0.0]
    while times[-1] < seconds:
        length_s = phases_rng.exponential(phases.on_s if on else phases.off_s)
        times.append(times[-1] + length_s)
        clock.append(clock[-1] + length_s * max(_IDLE_RATE, phases.on_rate if on else phases.off_rate))
        on = not on
    arrived = np.interp(_ticks(clock[-1], cv, ticks_rng), clock, times)
    return arrived[arrived < seconds]
