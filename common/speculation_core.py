"""The choice of draft lengths compiled: the same steps in the same order as :mod:`common.speculation_reference`."""

import numpy as np

from common.batching_table import Floats, Ints, compiled


@compiled
def choose(
    decodes: Ints,
    reaches: Floats,
    kv_tokens: int,
    pieces: Floats,
    k_seq: float,
    k_kv: float,
    budget_s: float,
    factors: Floats,
) -> Ints:
    """Drafts of each tier; what tiers and factors are is told at :func:`common.speculation.draft_lengths`."""
    count, seqs = len(decodes), decodes.sum()
    fixed_s = k_seq * seqs + k_kv * kv_tokens
    best = np.zeros(count, np.int64)
    best_rate = seqs / (_linear(pieces, seqs, 0) + fixed_s) / factors[0]
    for longest in range(1, len(factors)):
        lengths, offered = np.zeros(count, np.int64), np.zeros(count, np.int64)
        tokens, expected, rate = seqs, float(seqs), 0.0
        while True:
            tier = -1
            for i in range(count):
                if not decodes[i] or offered[i] == longest:
                    continue
                if tier < 0 or reaches[i, offered[i]] > reaches[tier, offered[tier]]:
                    tier = i
            if tier < 0:
                break
            offered[tier] += 1
            more = expected + decodes[tier] * reaches[tier, lengths[tier]]
            seconds = (_linear(pieces, tokens + decodes[tier], longest) + fixed_s) * factors[longest]
            if seconds <= budget_s and more / seconds > rate:
                lengths[tier] += 1
                tokens += decodes[tier]
                expected, rate = more, more / seconds
        if rate > best_rate:
            best, best_rate = lengths, rate
    return best


@compiled
def _linear(pieces: Floats, tokens: int, draft_steps: int) -> float:
    most = -np.inf
    for p in range(len(pieces)):
        most = max(most, pieces[p, 0] * tokens + pieces[p, 1] * draft_steps + pieces[p, 2])
    return most
