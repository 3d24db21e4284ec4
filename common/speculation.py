"""Whether and how far to speculate: acceptance learned by tier, and the draft lengths that decode fastest.

Lengths are chosen by what the latency model says a longer verification and more draft steps cost. Expected acceptance
is a reason to draft, never slack that anybody may spend: a rejected draft must not make a token late.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.latency_model import Batch, LatencyModel

MOST = 10
"""Longest draft, in tokens."""

CROWDED_KV = 0.85
"""Share of KV in use from which decoding faster helps waiting prompts more than their own chunks do."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often a tier's drafted tokens are accepted: a Beta prior and counts that fade as new ones come.

    ``fade`` bounds the memory to about ``1 / (1 - fade)`` verifications, so the estimate follows a change of traffic
    and can't be stuck; it is never 0 or 1.
    """

    accepted: float = 1.4
    rejected: float = 0.6
    fade: float = 0.99

    def observe(self, drafted: int, accepted: int) -> "Acceptance":
        """After verifying ``drafted`` tokens, of which the first ``accepted`` were right.

        Verification ends at the first wrong token, so the tokens after it say nothing.
        """
        if drafted <= 0:
            return self
        accepted = min(max(accepted, 0), drafted)
        prior = Acceptance(fade=self.fade)
        kept = self.fade
        return Acceptance(
            prior.accepted * (1 - kept) + self.accepted * kept + accepted,
            prior.rejected * (1 - kept) + self.rejected * kept + (accepted < drafted),
            self.fade,
        )

    @property
    def rate(self) -> float:
        """Probability that the next drafted token is accepted, given that all before it were."""
        return self.accepted / (self.accepted + self.rejected)

    def tokens(self, drafts: int) -> float:
        """Expected tokens of a decode with so many drafts, ``Acc`` in the paper: ``1 + a + .. + a^drafts``."""
        return (1 - self.rate ** (drafts + 1)) / (1 - self.rate)


@dataclass(frozen=True, slots=True)
class Tier:
    """The decodes of one tier: how many, how much context they read, and how their drafts fare."""

    decodes: int
    kv_tokens: int
    acceptance: Acceptance


def draft_lengths(
    tiers: Mapping[str, Tier],
    latency: LatencyModel,
    *,
    prompts_wait: bool,
    kv_used: float,
    budget_s: float,
    most: int = MOST,
) -> dict[str, int]:
    """Drafts for each decode of each tier, 0 for none; all 0 means that drafting must not run at all.

    While prompts wait, verifying takes time from them, unless KV is nearly full and finishing frees it. Otherwise the
    lengths maximise expected tokens per second among batches of at most ``budget_s``, the tightest slack.
    """
    none = dict.fromkeys(tiers, 0)
    if (prompts_wait and kv_used < CROWDED_KV) or most <= 0 or not any(tier.decodes for tier in tiers.values()):
        return none
    best, best_rate = none, _rate(tiers, none, latency, budget_s=float("inf"))
    for longest in range(1, most + 1):
        lengths = dict(none)
        rate = 0.0
        for step in _by_gain(tiers, longest):
            trial = {**lengths, step: lengths[step] + 1}
            trial_rate = _rate(tiers, trial, latency, budget_s, draft_steps=longest)
            if trial_rate > rate:
                lengths, rate = trial, trial_rate
        if rate > best_rate:
            best, best_rate = lengths, rate
    return best


def _by_gain(tiers: Mapping[str, Tier], longest: int) -> Iterable[str]:
    """Tiers once for each draft token, the likeliest accepted first; a token comes after those before it."""
    steps = [
        (tier.acceptance.rate**n, name) for name, tier in tiers.items() if tier.decodes for n in range(1, longest + 1)
    ]
    return [name for _, name in sorted(steps, key=lambda step: (-step[0], step[1]))]


def _rate(
    tiers: Mapping[str, Tier], lengths: Mapping[str, int], latency: LatencyModel, budget_s: float, draft_steps: int = 0
) -> float:
    """Expected tokens per second, 0 for a batch that takes too long."""
    seqs = sum(tier.decodes for tier in tiers.values())
    tokens = sum(tier.decodes * (1 + lengths[name]) for name, tier in tiers.items())
    kv_tokens = sum(tier.kv_tokens for tier in tiers.values())
    seconds = latency.seconds(Batch(tokens, seqs, kv_tokens, 0.0, draft_steps))
    if seconds > budget_s:
        return 0.0
    expected = sum(tier.decodes * tier.acceptance.tokens(lengths[name]) for name, tier in tiers.items())
    return expected / seconds
