"""KV without an oracle: how long outputs are is learned by tier, and a request's KV is expected from that.

A survival function ``S(x)`` says which share of a tier's outputs is longer than x tokens. A decoder that has made
``g`` tokens is still there ``h`` tokens later with probability ``S(g+h)/S(g)``, and then holds ``context + h``. KV is
fine if for every horizon h the sum over decoders fits. Each horizon stands for the tokens since the one before it, with
the chance of being alive at its begin and the context at its end: so between horizons nothing is missed, and while
nothing is known (S = 1) the bound is the hard one, every request at its ``max_tokens``.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

KV_LIMIT = 0.97
"""Share of a worker's KV that may be committed."""

HORIZONS = (0, 32, 64, 128, 192, 256, 384, 512, 768, *range(1024, 4096, 1024), 4096, 6144, 8192, 12288, 16384, 1 << 30)
"""In tokens; the last one is for ever."""

BINS = 512
FINE_TOKENS, FINE_BINS = 16, 256
COARSE_TOKENS = 128
"""Widths of bins: of the first half, up to 4,096 tokens, and of the second. Outputs of 36,864 tokens and more are as
likely to go on as those that reached that."""

Table = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Survival:
    """Survival tables by tier, ``table[b]`` for reaching bin b (:func:`bin_of`). ``version`` names the content."""

    version: int = 0
    tables: Mapping[str, Table] = field(default_factory=dict)

    def chance(self, tier: str, generated_tokens: int, more_tokens: int) -> float:
        """Probability that an output of ``generated_tokens`` so far grows by more than ``more_tokens``."""
        table = self.tables.get(tier)
        if table is None:
            return 1.0
        return min(1.0, table[bin_of(generated_tokens + more_tokens)] / table[bin_of(generated_tokens)])

    def expected_kv(self, tier: str, context_tokens: int, generated_tokens: int, left_tokens: int) -> tuple[float, ...]:
        """KV tokens of one request at each horizon; ``left_tokens`` is the most that it may still generate."""
        expected, before = [], 0
        for horizon in HORIZONS:
            alive = self.chance(tier, generated_tokens, before) if left_tokens >= before else 0.0
            expected.append(alive * (context_tokens + min(horizon, left_tokens)))
            before = min(horizon, left_tokens + 1)
        return tuple(expected)


def kv_fits(expected: Iterable[tuple[float, ...]], kv_tokens: int) -> bool:
    """Whether requests of these expectations fit a worker's KV at every horizon."""
    total = [sum(column) for column in zip(*expected, strict=True)]
    return all(tokens <= KV_LIMIT * kv_tokens for tokens in total)


class SurvivalLearner:
    """Kaplan-Meier estimates by tier with forgetting, blended with "everything goes on" until enough is known.

    Bounded: two counters for each bin and tier. Not shared; call :meth:`snapshot` for what a plan may see.
    """

    def __init__(self, forget: float = 0.998, prior: float = 8.0, refresh: int = 16, most_tiers: int = 64) -> None:
        self._forget = forget
        self._prior = prior
        self._refresh = refresh
        self._most_tiers = most_tiers
        self._ended: dict[str, list[float]] = {}
        self._censored: dict[str, list[float]] = {}
        self._new = 0
        self._snapshot = Survival()

    def observe(self, tier: str, output_tokens: int, ended: bool = True) -> None:
        """An output ended at this length; or (``ended`` False) was cut off there, by a cancel or by its limit."""
        if tier not in self._ended:
            if len(self._ended) >= self._most_tiers:
                return
            self._ended[tier], self._censored[tier] = [0.0] * BINS, [0.0] * BINS
        for counts in (self._ended[tier], self._censored[tier]):
            counts[:] = [count * self._forget for count in counts]
        (self._ended if ended else self._censored)[tier][bin_of(max(0, output_tokens))] += 1.0
        self._new += 1

    def snapshot(self, running: Iterable[tuple[str, int]] = ()) -> Survival:
        """The present tables, computed anew every ``refresh`` observations.

        ``running`` are (tier, tokens so far) of outputs that have not ended: they count as longer than that.
        """
        if self._new < self._refresh:
            return self._snapshot
        self._new = 0
        alive = {tier: list(counts) for tier, counts in self._censored.items()}
        for tier, tokens in running:
            if tier in alive:
                alive[tier][bin_of(tokens)] += 1.0
        tables = {tier: _kaplan_meier(self._ended[tier], alive[tier], self._prior) for tier in sorted(alive)}
        self._snapshot = Survival(self._snapshot.version + 1, tables)
        return self._snapshot


def _kaplan_meier(ended: list[float], censored: list[float], prior: float) -> Table:
    """Survival at the begin of each bin, as though ``prior`` more outputs had never ended."""
    at_risk = sum(ended) + sum(censored) + prior
    survival, table = 1.0, []
    for i in range(BINS):
        table.append(survival)
        survival *= max(1e-6, 1 - ended[i] / at_risk) if at_risk > prior else 1.0
        at_risk -= ended[i] + censored[i]
        survival = max(survival, math.ulp(1.0))
    return tuple(table)


def bin_of(tokens: int) -> int:
    """Where outputs of that many tokens are counted."""
    return min(tokens // FINE_TOKENS, FINE_BINS + max(0, tokens - FINE_TOKENS * FINE_BINS) // COARSE_TOKENS, BINS - 1)
