"""Best effort: where work without a promise runs, in what promised work leaves over and in its guaranteed share.

Engines compute it last, preempt it for promised work with its tokens kept, and give it its share. So here it must
only not pile up on them: a worker gets more when it is about to be idle, and under load one prompt at a time.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import numpy as np

from admission.core import add_to, kv_of
from admission.jit import compiled
from admission.lane_arrays import Fleet, Floats, Ints, Load, may_keep, may_take
from admission.request_arrays import SEND, Placed, Queue, Rules

LOOSE_SEATS = 0.75
"""Share of a worker's sequences that best effort may fill up to."""


@compiled
def fill(
    order: Ints, queue: Queue, fleet: Fleet, load: Load, tables: Floats, rules: Rules, sharing: int, placed: Placed
) -> None:  # fmt: skip
    """Dispatch requests in this order while a worker has room; the rest stays as it was.

    The first ``sharing`` have the guaranteed share of busy workers too.
    """
    kv = np.empty(load.kv.shape[1])
    for k in range(order.shape[0]):
        i = order[k]
        lane = decode = -1
        for at in range(fleet.kind.shape[0]):
            if not may_take(fleet, at, rules.elastic) or not _has_room(i, at, queue, fleet, load, k < sharing):
                continue
            if lane >= 0 and not _emptier(load, at, lane):
                continue
            target = _decoder(i, at, queue, fleet, load, tables, rules, kv)
            if target >= 0:
                lane, decode = at, target
        if lane >= 0:
            placed.action[i], placed.prefill[i], placed.decode[i] = SEND, lane, decode
            _add(i, lane, decode, queue, fleet, load, tables, kv)


@compiled
def _has_room(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load, shared: bool) -> bool:
    """Nothing promised waits and the prompts fit a batch; or it is the only one, in the guaranteed share."""
    if load.loose_tokens[lane] <= 0:
        return shared or load.backlog[lane] <= 0
    return load.backlog[lane] <= 0 and load.loose_tokens[lane] + queue.tokens[i] <= fleet.max_batch[lane]


@compiled
def _emptier(load: Load, left: int, right: int) -> bool:
    if load.backlog[left] != load.backlog[right]:
        return load.backlog[left] < load.backlog[right]
    if load.loose_tokens[left] != load.loose_tokens[right]:
        return load.loose_tokens[left] < load.loose_tokens[right]
    return load.seqs[left] < load.seqs[right]


@compiled
def _decoder(
    i: int, lane: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, rules: Rules, kv: Floats
) -> int:
    """The prefill lane itself, else the one with the fewest sequences that can be reached and has room."""
    if may_keep(fleet, lane, rules.elastic) and _holds(i, lane, queue, fleet, load, tables, kv):
        return lane
    best = -1
    for at in range(fleet.kind.shape[0]):
        if at == lane or fleet.kind[at] != fleet.kind[lane] or not may_keep(fleet, at, rules.elastic):
            continue
        if (best < 0 or load.seqs[at] < load.seqs[best]) and _holds(i, at, queue, fleet, load, tables, kv):
            best = at
    fits_here = load.all_kv[lane].max() + queue.tokens[i] + fleet.block[lane] <= fleet.kv[lane]
    return best if fits_here else -1


@compiled
def _holds(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, kv: Floats) -> bool:
    """Whether sequences and expected KV, best effort's included, stay within what the lane has."""
    if load.seqs[lane] + 1 > max(1.0, LOOSE_SEATS * fleet.max_seqs[lane]):
        return False
    kv_of(tables[queue.table[i]], queue.tokens[i], queue.generated[i], queue.left[i], fleet.block[lane], kv)
    for horizon in range(kv.shape[0]):  # noqa: SIM110 (numba compiles no generator)
        if load.all_kv[lane, horizon] + kv[horizon] > fleet.kv[lane]:
            return False
    return True


@compiled
def _add(i: int, lane: int, decode: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, kv: Floats) -> None:
    kv_of(tables[queue.table[i]], queue.tokens[i], queue.generated[i], queue.left[i], fleet.block[decode], kv)
    add_to(load.all_kv, decode, kv)
    load.seqs[decode] += 1
    if decode != lane:
        load.all_kv[lane] += queue.tokens[i] + fleet.block[lane] - 1
        load.seqs[lane] += 1
    load.loose_tokens[lane] += queue.tokens[i]
