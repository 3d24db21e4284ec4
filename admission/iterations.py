"""How many prompt tokens fit into a worker's iterations beside those of its decoders, and how long iterations take.

Compiled. Times are in seconds, work is in tokens; ``riders`` are decoders' tokens in all these iterations together.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

from admission.jit import compiled
from admission.lane_arrays import Fleet


@compiled
def budget_of(
    fleet: Fleet,
    lane: int,
    seconds: float,
    rounds: float,
    since_s: float,
    riders: float,
    decoders: float,
    context: float,
) -> float:
    """Prompt tokens within so many seconds, in at least as many iterations as rounds, beside tokens of decoders.

    One more iteration ends last, or the last of them ends ``since_s`` before.
    """
    iterations = rounds / fleet.made[lane]
    room = _room(fleet, lane, seconds, iterations + 1, riders, decoders, context)
    if since_s < _iteration_s(fleet, lane, decoders, context):  # else it gains less than it costs
        room = max(room, _room(fleet, lane, seconds - since_s, max(1.0, iterations), riders, decoders, context))
    return room


@compiled
def _room(
    fleet: Fleet, lane: int, seconds: float, iterations: float, riders: float, decoders: float, context: float
) -> float:
    riders = min(riders, iterations * decoders)
    extra_s, most, free = _extra_s(fleet, lane, iterations, riders, decoders, context), math.inf, fleet.max_batch[lane]
    free = max(1.0, free - decoders)
    for piece in range(fleet.pieces[lane]):
        k_token, base_s = fleet.k_token[lane, piece], fleet.base[lane, piece] + extra_s
        left_s = seconds - iterations * base_s
        if k_token > 0:
            most = min(most, left_s / k_token - iterations - riders)
        elif left_s < 0:
            most = -math.inf
        full_s = k_token * free + base_s
        if full_s > 0:
            most = min(most, (seconds - k_token * decoders) * free / full_s)
    return most


@compiled
def _iteration_s(fleet: Fleet, lane: int, decoders: float, context: float) -> float:
    """With all decoders and no prompt."""
    longest_s = 0.0
    for piece in range(fleet.pieces[lane]):
        longest_s = max(longest_s, fleet.base[lane, piece] + fleet.k_token[lane, piece] * (decoders + 1))
    return longest_s + fleet.k_seq[lane] * (decoders + 1) + fleet.k_kv[lane] * context


@compiled
def _extra_s(fleet: Fleet, lane: int, iterations: float, riders: float, decoders: float, context: float) -> float:
    """What an iteration costs beside its tokens: a prompt, and its share of the riders with their mean context."""
    each = riders / iterations
    kv = each / decoders * context if decoders > 0 else context
    return fleet.k_seq[lane] * (each + 1) + fleet.k_kv[lane] * kv


@compiled
def seconds_of(
    fleet: Fleet, lane: int, work: float, iterations: float, riders: float, decoders: float, context: float
) -> float:
    """How long at least so many iterations take, with so much work in them."""
    riders, longest_s = min(riders, iterations * decoders), 0.0
    extra_s = _extra_s(fleet, lane, iterations, riders, decoders, context)
    for piece in range(fleet.pieces[lane]):
        k_token, base_s = fleet.k_token[lane, piece], fleet.base[lane, piece] + extra_s
        longest_s = max(longest_s, iterations * base_s + k_token * (work + iterations + riders))
        per_token_s = k_token + base_s / max(1.0, fleet.max_batch[lane] - decoders)
        longest_s = max(longest_s, per_token_s * work + k_token * decoders)
    return longest_s
