"""How much prompt work a worker can take by a time without a promised token being late: demand bound, exact slack.

This is the definition, in the order in which one would say it; :mod:`admission.timeline` computes the same for all
workers and deadlines at once. Every decoder whose next token is due ``slack`` ahead owes
``floor((t - slack) / tpot) + 1`` tokens by t. The one that owes most sets how many iterations end at its deadlines; one
more ends at t. Each carries every decoder, so tokens due soon after t are safe too.
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


def budget_tokens(
    latency: LatencyModel,
    max_batch_tokens: int,
    demands: Sequence[Demand],
    kv_tokens: float,
    time_us: int,
    ready_s: float = 0.0,
    stretch: float = 1.0,
) -> float:
    """Prompt tokens that fit by ``time_us`` from now on a worker that can begin with them in ``ready_s``.

    Each iteration is charged for all decoders and one prompt, and loses up to a token to rounding. Costs are stretched
    by ``stretch``. Negative if not even the decoders keep up.
    """
    decoders = len(demands)
    iterations = max([0, *(demand.tokens_by(time_us) for demand in demands)]) + 1
    seconds = time_us / 1e6 - ready_s
    riders_s = latency.k_seq * (decoders + 1) + latency.k_kv * kv_tokens
    room = math.inf
    for piece in latency.pieces:
        k_token, base_s = stretch * piece.k_token, stretch * (piece.base + riders_s)
        if k_token > 0:
            room = min(room, (seconds - iterations * base_s) / k_token - iterations * (decoders + 1))
        elif seconds < iterations * base_s:
            room = -math.inf
        if k_token + base_s > 0:
            largest = max(1.0, max_batch_tokens - decoders)
            room = min(room, (seconds - k_token * decoders) / (k_token + base_s / largest))
    return room
