"""The choice of draft lengths written out: slow, readable, and held to the same results as the compiled one.

For each longest draft, tiers get one more token each in the order of what it is likely to gain, as long as the whole
gets faster; the fastest of these wins, or nobody drafts.
"""

from collections.abc import Iterable, Mapping, Sequence

from common.latency_model import Batch, LatencyModel
from common.speculation import Tier


def lengths_reference(
    tiers: Mapping[str, Tier], latency: LatencyModel, budget_s: float, factors: Sequence[float]
) -> dict[str, int]:
    """See :func:`common.speculation.draft_lengths`; here nothing waits."""
    best = none = dict.fromkeys(tiers, 0)
    best_rate = rate_of(tiers, none, latency, float("inf"), 0, factors[0])
    for longest in range(1, len(factors)):
        lengths, rate = dict(none), 0.0
        for name in by_gain(tiers, longest):
            trial = {**lengths, name: lengths[name] + 1}
            trial_rate = rate_of(tiers, trial, latency, budget_s, longest, factors[longest])
            if trial_rate > rate:
                lengths, rate = trial, trial_rate
        if rate > best_rate:
            best, best_rate = lengths, rate
    return best


def by_gain(tiers: Mapping[str, Tier], longest: int) -> Iterable[str]:
    """Tiers once for each draft token, the likeliest accepted first; a token comes after those before it."""
    drafting = [(name, tier) for name, tier in tiers.items() if tier.decodes]
    steps = [(reach, name) for name, tier in drafting for reach in tier.acceptance.reaches(longest)]
    return [name for _, name in sorted(steps, key=lambda step: (-step[0], step[1]))]


def rate_of(
    tiers: Mapping[str, Tier],
    lengths: Mapping[str, int],
    latency: LatencyModel,
    budget_s: float,
    draft_steps: int,
    factor: float,
) -> float:
    """Expected tokens per second, 0 for a batch that takes too long."""
    seqs = sum(tier.decodes for tier in tiers.values())
    tokens = sum(tier.decodes * (1 + lengths[name]) for name, tier in tiers.items())
    kv_tokens = sum(tier.kv_tokens for tier in tiers.values())
    seconds = latency.seconds(Batch(tokens, seqs, kv_tokens, 0.0, draft_steps)) * factor
    expected = sum(tier.decodes * tier.acceptance.tokens(lengths[name]) for name, tier in tiers.items())
    return expected / seconds if seconds <= budget_s else 0.0
