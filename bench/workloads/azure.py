"""Arrivals with the statistics of the Azure LLM inference traces of 2023, for where those files are absent.

The traces (Patel et al., "Splitwise", ISCA 2024; CC-BY-4.0) were measured once. Code: 2.57 requests/s in 95 runs of 92
requests and 9 s on average with silence of 27 s between them, gap CV 13.2, per-second max/mean 26.
Conversation: 5.53 requests/s, gap CV 1.09, max/mean 2.9, with a rate that wanders by a fifth over minutes.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CODE_RATE = 2.57
CONVERSATION_RATE = 5.53

_RUN_MEDIAN, _RUN_SIGMA, _RUN_MOST = 52.0, 1.23, 575.0
_PACE_MEDIAN, _PACE_SIGMA = 13.0, 0.65
_GAP_SHAPE = 0.5
_SILENCE_MEDIAN_S, _SILENCE_SIGMA, _SILENCE_LEAST_S, _SILENCE_MOST_S = 10.0, 1.55, 2.0, 217.0

_STEP_S, _MEMORY, _WANDER = 30.0, 0.8, 0.2
_CONVERSATION_CV = 1.05


def code_arrivals(seconds: float, rng: np.random.Generator) -> Floats:
    """Runs of requests with silence between them, at :data:`CODE_RATE` on average."""
    parts, now_s = list[Floats](), 0.0
    while now_s < seconds:
        count = int(min(_RUN_MOST, max(1.0, _lognormal(rng, _RUN_MEDIAN, _RUN_SIGMA))))
        pace = _lognormal(rng, _PACE_MEDIAN, _PACE_SIGMA)
        times = now_s + np.cumsum(rng.gamma(_GAP_SHAPE, 1 / (pace * _GAP_SHAPE), count))
        silence_s = min(_SILENCE_MOST_S, _SILENCE_LEAST_S + _lognormal(rng, _SILENCE_MEDIAN_S, _SILENCE_SIGMA))
        parts.append(times)
        now_s = float(times[-1]) + silence_s
    return _before(np.concatenate(parts), seconds)


def conversation_arrivals(seconds: float, rng: np.random.Generator) -> Floats:
    """A gamma renewal process on a clock that runs faster and slower over minutes."""
    steps = int(seconds / _STEP_S) + 2
    wander = np.empty(steps)
    wander[0] = rng.standard_normal()
    for i in range(1, steps):
        wander[i] = _MEMORY * wander[i - 1] + np.sqrt(1 - _MEMORY**2) * rng.standard_normal()
    speed = np.exp(_WANDER * wander - _WANDER**2 / 2) * CONVERSATION_RATE
    clock = np.concatenate(([0.0], np.cumsum(speed * _STEP_S)))
    shape = 1 / _CONVERSATION_CV**2
    ticks = np.cumsum(rng.gamma(shape, 1 / shape, int(clock[-1] * 1.2) + 50))
    return _before(np.interp(ticks, clock, np.arange(steps + 1) * _STEP_S, right=np.inf), seconds)


def _lognormal(rng: np.random.Generator, median: float, sigma: float) -> float:
    return float(median * np.exp(sigma * rng.standard_normal()))


def _before(times: Floats, seconds: float) -> Floats:
    kept: Floats = times[times < seconds]
    return kept
