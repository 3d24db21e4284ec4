"""One run seen from near, small enough to keep: distributions by tier, its densest stretch, and its predictions.

Columns of equal length, times in seconds from the run's first arrival, durations in milliseconds; what there was not
(no token, no prediction) is None.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.outcome import Outcome
from common.messages import Verdict

STRETCH = 400
"""Requests of the densest stretch."""
PREDICTED = 400
"""Promises whose prediction is kept, evenly taken of all."""
QUANTILES = 51
AROUND = 0.35
"""The densest ``DENSE_S`` seconds begin after this share of the stretch."""
DENSE_S = 4.0


@dataclass(frozen=True, slots=True)
class Records:
    """What is kept of a run at ``rate`` (requests per second in all) with this seed."""

    rate: float
    seed: int
    outcomes: Sequence[Outcome]

    def as_json(self) -> dict[str, Any]:
        """See the module."""
        asked = sorted((one for one in self.outcomes if one.objective is not None), key=lambda one: one.arrival_s)
        start_s = asked[0].arrival_s if asked else 0.0
        tiers = sorted({one.item.tier for one in asked})
        return {
            "rate": self.rate,
            "seed": self.seed,
            "requests": len(asked),
            "tiers": {tier: _distribution([one for one in asked if one.item.tier == tier]) for tier in tiers},
            "stretch": _columns(_densest(asked), start_s),
            "predicted": _predictions(asked),
        }


def _distribution(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Quantiles at 0, 2 .. 100 % over all requests of the tier; None where that share never got so far."""
    return {
        "requests": len(outcomes),
        "attained": sum(one.attained() for one in outcomes) / len(outcomes),
        "ttft_ms": _quantiles([one.ttft_s for one in outcomes]),
        "ttft_over_slo": _quantiles([one.ttft_s / _ttft_slo_s(one) for one in outcomes], 1.0),
        "tpot_ms": _quantiles([math.inf if one.tpot_s is None else one.tpot_s for one in _several(outcomes)]),
        "tpot_slo_ms": _milliseconds(float(np.median([_tpot_slo_s(one) for one in outcomes]))),
    }


def _several(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that have a time per output token, or should have one."""
    return [one for one in outcomes if one.item.output_tokens > 1]


def _quantiles(values: Sequence[float], unit: float = 1e3) -> list[float | None]:
    if not values:
        return []
    ordered = sorted(values)
    at = [round(share * (len(ordered) - 1)) for share in np.linspace(0, 1, QUANTILES).tolist()]
    return [_rounded(ordered[i] * unit) for i in at]


def _densest(asked: Sequence[Outcome]) -> Sequence[Outcome]:
    """A stretch of the run around the ``DENSE_S`` seconds in which most arrived."""
    if len(asked) <= STRETCH:
        return asked
    arrived = np.array([one.arrival_s for one in asked])
    inside = np.searchsorted(arrived, arrived + DENSE_S) - np.arange(len(arrived))
    begin = int(inside.argmax()) - round(AROUND * STRETCH)
    begin = min(max(0, begin), len(asked) - STRETCH)
    return asked[begin : begin + STRETCH]


def _columns(outcomes: Sequence[Outcome], start_s: float) -> dict[str, list[Any]]:
    return {
        "arrival_s": [round(one.arrival_s - start_s, 3) for one in outcomes],
        "tier": [one.item.tier for one in outcomes],
        "ttft_ms": [_milliseconds(one.ttft_s) for one in outcomes],
        "ttft_slo_ms": [_milliseconds(_ttft_slo_s(one)) for one in outcomes],
        "tpot_ms": [None if one.tpot_s is None else _milliseconds(one.tpot_s) for one in outcomes],
        "ended_s": [None if one.ended_s is None else round(one.ended_s - start_s, 3) for one in outcomes],
        "verdict": [str(one.verdict) for one in outcomes],
        "attained": [int(one.attained()) for one in outcomes],
    }


def _predictions(asked: Sequence[Outcome]) -> dict[str, list[Any]]:
    """Of promises that were kept to their end: what was predicted when they were made."""
    promised = [
        one
        for one in asked
        if one.verdict is Verdict.ADMITTED and one.predicted_ttft_s is not None and one.token_times_s
    ]
    some = [promised[i] for i in _evenly(len(promised), PREDICTED)]
    return {
        "tier": [one.item.tier for one in some],
        "ttft_ms": [_milliseconds(one.predicted_ttft_s or 0.0) for one in some],
        "achieved_ttft_ms": [_milliseconds(one.ttft_s) for one in some],
        "tpot_ms": [None if one.predicted_tpot_s is None else _milliseconds(one.predicted_tpot_s) for one in some],
        "achieved_tpot_ms": [None if one.tpot_s is None else _milliseconds(one.tpot_s) for one in some],
    }


def _evenly(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def _ttft_slo_s(one: Outcome) -> float:
    assert one.objective is not None
    return one.objective.ttft_s


def _tpot_slo_s(one: Outcome) -> float:
    assert one.objective is not None
    return one.objective.tpot_s


def _milliseconds(seconds: float) -> float | None:
    return _rounded(seconds * 1e3)


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
