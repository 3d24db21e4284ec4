"""How much prompt work a worker can take by a time without a promised token being late: demand bound, exact slack.

This is the definition, in the order in which one would say it; :mod:`admission.timeline` computes the same for all
workers and deadlines at once. Every decoder whose next token is due ``slack`` ahead owes
``floor((t - slack) / tpot) + 1`` tokens by t. The one that owes most sets how many iterations end at its deadlines; one
more ends at t, unless more prompt tokens fit without it, until the last of those deadlines: of those that owe most the
first one's counts. In them are all tokens due by t or within a guard time after it, so that those are safe too.
Decoders with more slack need not take part in all, and engines let them skip some.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.latency_model import LatencyModel


@dataclass(frozen=True, slots=True)
class Demand:
    """A promised decoder: its next token is due in ``slack_us`` (0 if it is late), then one every ``tpot_us``."""

    slack_us: int
    tpot_us: int

    def tokens_by(self, time_us: int) -> int:
        """How many tokens are due by then."""
        return 0 if time_us < self.slack_us else (time_us - self.slack_us) // self.tpot_us + 1

    def riders_by(self, time_us: float) -> float:
        """About as many, rising evenly from the first on: never fewer, and less than one more."""
        return 0.0 if time_us < self.slack_us else (time_us - self.slack_us) / self.tpot_us + 1

    def due_us(self, tokens: int) -> int:
        """When that many tokens are due."""
        return self.slack_us + (tokens - 1) * self.tpot_us


def budget_tokens(
    latency: LatencyModel,
    max_batch_tokens: int,
    demands: Sequence[Demand],
    kv_tokens: float,
    time_us: int,
    guard_us: float = math.inf,
    ready_s: float = 0.0,
    stretch: float = 1.0,
) -> float:
    """Prompt tokens that fit by ``time_us`` from now on a worker that can begin with them in ``ready_s``.

    Each iteration is charged for decoders' tokens due within ``guard_us`` after that and one prompt, and loses up to a
    token to rounding. Costs are stretched by ``stretch``. Negative if not even the decoders keep up.
    """
    tokens = max([0, *(demand.tokens_by(time_us) for demand in demands)])
    ends = [(time_us, tokens + 1)]
    if tokens:
        ends.append((min(demand.due_us(tokens) for demand in demands if demand.tokens_by(time_us) == tokens), tokens))
    due = math.inf if guard_us == math.inf else sum(demand.riders_by(time_us + guard_us) for demand in demands)
    return max(
        _room(latency, max_batch_tokens, len(demands), due, kv_tokens, end_us / 1e6 - ready_s, iterations, stretch)
        for end_us, iterations in ends
    )


def _room(
    latency: LatencyModel,
    max_batch_tokens: int,
    decoders: int,
    due: float,
    kv_tokens: float,
    seconds: float,
    iterations: int,
    stretch: float,
) -> float:
    """What at least so many iterations hold beside decoders, whose tokens are ``due`` or one in each."""
    riders = min(due, iterations * decoders)
    share = riders / (iterations * decoders) if decoders else 1.0
    riders_s = latency.k_seq * (share * decoders + 1) + latency.k_kv * share * kv_tokens
    room = math.inf
    for piece in latency.pieces:
        k_token, base_s = stretch * piece.k_token, stretch * (piece.base + riders_s)
        if k_token > 0:
            room = min(room, (seconds - iterations * base_s) / k_token - iterations - riders)
        elif seconds < iterations * base_s:
            room = -math.inf
        if k_token + base_s > 0:
            largest = max(1.0, max_batch_tokens - decoders)
            room = min(room, (seconds - k_token * decoders) / (k_token + base_s / largest))
    return room
