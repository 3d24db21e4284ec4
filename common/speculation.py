"""Whether and how far to speculate: acceptance learned by tier, and the draft lengths that decode fastest.

Lengths are chosen by what the latency model says a longer verification and more draft steps cost, corrected by what
they were seen to cost (:class:`common.draft_costs.DraftCosts`). The choice is written out in
:mod:`common.speculation_reference` and compiled in :mod:`common.speculation_core`. Expected acceptance is a reason to
draft, never slack that anybody may spend: a rejected draft must not make a token late.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.batching_table import Floats
from common.latency_model import LatencyModel, Piece
from common.speculation_core import choose

MOST = 10
"""Longest draft, in tokens."""

_PRIOR = (1.4, 0.6)
_WEIGHT = 4.0
"""Verifications that a position's own counts must outweigh the rate of all."""

CROWDED_KV = 0.85
"""Share of KV in use from which decoding faster helps waiting prompts more than their own chunks do."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often a tier's drafted tokens are accepted: a Beta prior and counts that fade as new ones come.

    ``positions`` are the counts of each token of a draft, given that all before it were accepted: where the first
    was right the text is easy, and the next is likelier to be. ``fade`` bounds the memory to about
    ``1 / (1 - fade)`` verifications, so the estimate follows a change of traffic; it is never 0 or 1.
    """

    accepted: float = 1.4
    rejected: float = 0.6
    fade: float = 0.99
    positions: tuple[tuple[float, float], ...] = ()

    def observe(self, drafted: int, accepted: int) -> "Acceptance":
        """After verifying ``drafted`` tokens, of which the first ``accepted`` were right.

        Verification ends at the first wrong token, so the tokens after it say nothing.
        """
        if drafted <= 0:
            return self
        accepted = min(max(accepted, 0), drafted)
        kept, new = self.fade, 1 - self.fade
        checked = min(drafted, accepted + 1)
        before = self.positions + ((0.0, 0.0),) * (checked - len(self.positions))
        positions = [
            (right * kept + (n < accepted), wrong * kept + (n >= accepted))
            for n, (right, wrong) in enumerate(before[:checked])
        ]
        return Acceptance(
            _PRIOR[0] * new + self.accepted * kept + accepted,
            _PRIOR[1] * new + self.rejected * kept + (accepted < drafted),
            self.fade,
            (*positions, *before[checked:]),
        )

    @property
    def rate(self) -> float:
        """Probability that the next drafted token is accepted, given that all before it were, wherever it stands."""
        return self.accepted / (self.accepted + self.rejected)

    def reaches(self, drafts: int) -> list[float]:
        """Probabilities that the first, the first two, .. of so many drafted tokens are all accepted."""
        rate, reached, found = self.rate, 1.0, []
        for n in range(drafts):
            right, wrong = self.positions[n] if n < len(self.positions) else (0.0, 0.0)
            reached *= (_WEIGHT * rate + right) / (_WEIGHT + right + wrong)
            found.append(reached)
        return found

    def tokens(self, drafts: int) -> float:
        """Expected tokens of a decode with so many drafts, ``Acc`` in the paper, where it is ``1 + a + .. + a^n``."""
        return 1.0 + sum(self.reaches(drafts))


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
    factors: Floats | None = None,
) -> dict[str, int]:
    """Drafts for each decode of each tier, 0 for none; all 0 means that drafting must not run at all.

    While prompts wait, verifying takes time from them, unless KV is nearly full and finishing frees it. Otherwise the
    lengths maximise expected tokens per second among batches of at most ``budget_s``, the tightest slack.
    ``factors`` are measured over predicted seconds of a decode batch by its longest draft, 0 to ``most``.
    """
    none = dict.fromkeys(tiers, 0)
    if (prompts_wait and kv_used < CROWDED_KV) or most <= 0 or not any(tier.decodes for tier in tiers.values()):
        return none
    names = sorted(tiers)
    lengths = choose(
        np.array([tiers[name].decodes for name in names]),
        np.array([tiers[name].acceptance.reaches(most) for name in names]),
        sum(tier.kv_tokens for tier in tiers.values()),
        np.array([(piece.k_token, piece.k_draft, piece.base) for piece in latency.pieces]),
        float(latency.k_seq),
        float(latency.k_kv),
        float(budget_s),
        np.ones(most + 1) if factors is None else factors,
    )
    return none | dict(zip(names, lengths.tolist(), strict=True))


def warm_up() -> None:
    """Compile, or load what was compiled before (seconds)."""
    model = LatencyModel((Piece(1e-4, 1e-4, 1e-3),))
    draft_lengths({"": Tier(1, 8, Acceptance())}, model, prompts_wait=False, kv_used=0.0, budget_s=1.0, most=1)
