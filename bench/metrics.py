"""What is reported of a run: attainment first, and beside it what a policy could win attainment with unfairly."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bench.outcome import Outcome, share_fates
from common.messages import Verdict

QUANTILES = (0.5, 0.9, 0.99)
SETTLED = 0.02
"""A backlog may grow by so many of all requests before a run counts as not stationary."""


@dataclass(frozen=True, slots=True)
class Report:
    """Shares are of all requests with an SLO, durations in seconds; quantiles that nothing reached are infinite.

    ``deferred`` were never promised anything, ``deferred_ttft_over_slo_p99`` is how many times their TTFT objective
    those waited. ``goodput_*`` are of requests that attained their SLO, per second of arrivals. ``stationary`` says
    that no backlog grew.
    """

    requests: int
    attainment: float
    attainment_strict: float
    met: float
    admitted: float
    deferred: float
    promoted: float
    rejected: float
    unfinished: float
    ttft_s: tuple[float, float, float]
    tpot_s: tuple[float, float, float]
    deferred_ttft_over_slo_p99: float
    goodput_requests_per_s: float
    goodput_tokens_per_s: float
    jain: float
    stationary: bool
    predicted_ttft_error: float
    tiers: dict[str, "Report"] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values; infinite ones as None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def report(outcomes: Sequence[Outcome], seconds: float, by_tier: bool = True, fates: bool = True) -> Report:
    """Figures of one run whose requests arrived within ``seconds``; rounds of a session share a fate if ``fates``."""
    outcomes = share_fates(outcomes) if by_tier and fates else outcomes
    asked = [one for one in outcomes if one.objective is not None] or list(outcomes)
    attained = [one for one in asked if one.attained()]
    unpromised = [one for one in asked if one.verdict is not Verdict.ADMITTED and one.objective is not None]
    tiers = sorted({one.item.tier for one in asked}) if by_tier else []
    return Report(
        requests=len(asked),
        attainment=len(attained) / len(asked),
        attainment_strict=_share(asked, lambda one: one.attained(0.0)),
        met=_share(asked, lambda one: one.met()),
        admitted=_share(asked, lambda one: one.verdict is Verdict.ADMITTED),
        deferred=_share(asked, lambda one: one.verdict is Verdict.DEFERRED),
        promoted=_share(asked, lambda one: one.promoted),
        rejected=_share(asked, lambda one: one.verdict is Verdict.REJECTED),
        unfinished=_share(asked, lambda one: one.ended_s is None),
        ttft_s=_quantiles([one.ttft_s for one in asked]),
        tpot_s=_quantiles([one.tpot_s for one in asked if one.tpot_s is not None]),
        deferred_ttft_over_slo_p99=_quantile([_over_slo(one) for one in unpromised], 0.99),
        goodput_requests_per_s=len(attained) / seconds,
        goodput_tokens_per_s=sum(one.item.output_tokens for one in attained) / seconds,
        jain=_jain(asked),
        stationary=stationary(asked),
        predicted_ttft_error=_prediction_error(asked),
        tiers={tier: report([one for one in asked if one.item.tier == tier], seconds, False) for tier in tiers},
    )


def stationary(outcomes: Sequence[Outcome]) -> bool:
    """Whether in the last quarter of arrivals no more requests waited for a first token than in the second.

    Twice as many and :data:`SETTLED` of all requests more are allowed: bursts come and go.
    """
    arrived = np.sort(np.array([one.arrival_s for one in outcomes]))
    begun = np.sort(np.array([_wait_ends_s(one) for one in outcomes]))
    start_s, span_s = float(arrived[0]), float(arrived[-1] - arrived[0])

    def waiting(begin: float, end: float) -> float:
        times = start_s + span_s * np.linspace(begin, end, 50)
        return float((np.searchsorted(arrived, times, "right") - np.searchsorted(begun, times, "right")).mean())

    return waiting(0.75, 1.0) <= 2 * waiting(0.25, 0.5) + SETTLED * len(outcomes) + 1


def _wait_ends_s(one: Outcome) -> float:
    if one.token_times_s:
        return one.token_times_s[0]
    return math.inf if one.ended_s is None else one.ended_s


def _over_slo(one: Outcome) -> float:
    return math.inf if one.objective is None else one.ttft_s / one.objective.ttft_s


def _share(outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return sum(map(holds, outcomes)) / len(outcomes)


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    return _quantile(values, QUANTILES[0]), _quantile(values, QUANTILES[1]), _quantile(values, QUANTILES[2])


def _quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share is not above; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _jain(outcomes: Sequence[Outcome]) -> float:
    """Jain's index over the tenants' attainments: 1 is even, 1/n is one tenant only."""
    shares = []
    for tenant in {one.item.tenant for one in outcomes}:
        shares.append(_share([one for one in outcomes if one.item.tenant == tenant], lambda one: one.attained()))
    squares = sum(share**2 for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def _prediction_error(outcomes: Sequence[Outcome]) -> float:
    """Median of predicted less achieved TTFT, relative to the objective; 0 where nothing was predicted."""
    errors = [
        (one.predicted_ttft_s - one.ttft_s) / one.objective.ttft_s
        for one in outcomes
        if one.predicted_ttft_s is not None and one.objective is not None and one.token_times_s
    ]
    return float(np.median(errors)) if errors else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
