"""Who decodes: the worker that prefilled if a hand-off buys nothing, else where tight decodes are packed already.

Times are seconds from now, work is in tokens.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

import numpy as np

from admission.core import kv_of
from admission.jit import compiled
from admission.lane_arrays import (
    Fleet,
    Floats,
    Ints,
    Load,
    batch_s,
    chunk_of,
    head_start_s,
    may_keep,
    may_take,
    tokens_in,
)
from admission.request_arrays import Queue, Rules
from admission.timeline import TICKS, Timeline, stays_in_time

ROLE = 0.5
"""What prompt rate counts on workers that do not prefer prompts, where others do."""


@compiled
def used(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load) -> float:
    """Share of its tokens that the lane would spend on promised decodes with this one; infinite if it can't."""
    tightest_s = min(load.tightest_s[lane], queue.tpot_s[i])
    extra_s = load.extra_s[lane] + fleet.k_seq[lane] + fleet.k_kv[lane] * queue.tokens[i]
    room = min(fleet.max_batch[lane], tokens_in(fleet, lane, tightest_s, extra_s))
    if room <= 0 or load.decoders[lane] >= fleet.max_seqs[lane]:
        return math.inf
    return tightest_s * (load.rate[lane] + 1 / queue.tpot_s[i]) / room


@compiled
def _kv_fits(i: int, lane: int, queue: Queue, fleet: Fleet, held: Floats, tables: Floats, out: Floats) -> bool:
    """Whether the request's expected KV fits the lane; leaves it in ``out``."""
    block = fleet.block[lane]
    kv_of(tables[queue.table[i]], queue.tokens[i], queue.generated[i], queue.left[i], block, out)
    for horizon in range(out.shape[0]):  # noqa: SIM110 (numba compiles no generator)
        if held[lane, horizon] + out[horizon] > fleet.kv[lane]:
            return False
    return True


@compiled
def loss(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load, elastic: bool) -> float:
    """What the request's decoding would cost in prompts: its part of what decoders there take of an idle lane's rate.

    Its part and not what it adds: one more costs nothing where there are some, but then no lane would ever be without.
    A lane that computes no prompts loses nothing.
    """
    if not may_take(fleet, lane, elastic):
        return 0.0
    tightest_s = min(load.tightest_s[lane], queue.tpot_s[i])
    extra_s = load.extra_s[lane] + fleet.k_seq[lane] + fleet.k_kv[lane] * queue.tokens[i]
    decoders = load.decoders[lane] + 1
    chunk = chunk_of(fleet, lane, decoders, tightest_s, extra_s)
    after = chunk / batch_s(fleet, lane, chunk + decoders, extra_s)
    idle = fleet.max_batch[lane] / fleet.longest_s[lane]
    role = ROLE if not fleet.likes_prefill[lane] and fleet.likes_prefill.any() else 1.0
    part = 1 / queue.tpot_s[i] / (load.rate[lane] + 1 / queue.tpot_s[i])
    return role * (idle - after) / idle * part


@compiled
def hand_off_targets(
    i: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, line: Timeline, rules: Rules, kv: Floats,
    target: Ints,
) -> None:  # fmt: skip
    """The best lane to decode on, by kind of engine: where it costs least in prompts, else the emptiest."""
    score = np.full(target.shape[0], math.inf)
    due, tpot = queue.due_s[i] * TICKS, queue.tpot_s[i] * TICKS
    for lane in range(fleet.kind.shape[0]):
        if not may_keep(fleet, lane, rules.elastic):
            continue
        share = used(i, lane, queue, fleet, load)
        cost = loss(i, lane, queue, fleet, load, rules.elastic) if rules.pack else share
        kind = fleet.kind[lane]
        if not (cost < score[kind] and share <= rules.decode_load):
            continue
        if not _kv_fits(i, lane, queue, fleet, load.kv, tables, kv[lane]):
            continue
        if stays_in_time(fleet, line, lane, line.times.shape[0], 0.0, due, tpot, queue.tokens[i]):
            score[kind], target[kind] = cost, lane


@compiled
def decode_lane(
    i: int,
    lane: int,
    finish_s: float,
    queue: Queue,
    fleet: Fleet,
    load: Load,
    tables: Floats,
    rules: Rules,
    kv: Floats,
    target: Ints,
) -> int:
    """Who decodes what this lane prefills by then; -1 if nobody can."""
    handed = target[fleet.kind[lane]]
    if handed == lane:
        return lane
    if handed >= 0:
        early_s = head_start_s(
            handed,
            queue.tokens[i],
            queue.tpot_s[i],
            finish_s,
            rules.head_start,
            fleet,
            load,
            rules.hop_s,
            rules.elastic,
        )
        if finish_s + early_s > queue.due_s[i]:
            if spoils(i, lane, handed, queue, fleet, load, rules):
                return -1
            handed = -1
    saved = 0.0
    if handed >= 0:
        saved = loss(i, lane, queue, fleet, load, rules.elastic) - loss(i, handed, queue, fleet, load, rules.elastic)
    if saved <= rules.hand_off and keeps(i, lane, queue, fleet, load, tables, rules, kv):
        return lane
    fits_here = load.kv[lane].max() + queue.tokens[i] + fleet.block[lane] <= fleet.kv[lane]
    return handed if fits_here else -1


@compiled
def keeps(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, rules: Rules, kv: Floats) -> bool:
    """Whether the lane that prefills may and can decode too."""
    if not may_keep(fleet, lane, rules.elastic) or used(i, lane, queue, fleet, load) > rules.decode_load:
        return False
    return _kv_fits(i, lane, queue, fleet, load.kv, tables, kv[lane])


@compiled
def spoils(i: int, lane: int, target: int, queue: Queue, fleet: Fleet, load: Load, rules: Rules) -> bool:
    """Whether to decode there and not at the target costs the lane more prompts than this one is worth.

    One tight decode on a lane without any takes half of its prompt rate for as long as it lasts, and those after it
    find no hand-off in time either: under lasting load all lanes end up with a few, and none makes large batches.
    """
    lost = loss(i, lane, queue, fleet, load, rules.elastic) - loss(i, target, queue, fleet, load, rules.elastic)
    return lost * rules.spoil_s > queue.tokens[i] * fleet.longest_s[lane] / fleet.max_batch[lane]


@compiled
def stays(
    i: int, lane: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, rules: Rules, kv: Floats, target: Ints
) -> bool:
    """Whether it may decode where it was prefilled although the hand-off to the target would come too late."""
    best = target[fleet.kind[lane]]
    if best >= 0 and best != lane and spoils(i, lane, best, queue, fleet, load, rules):
        return False
    return keeps(i, lane, queue, fleet, load, tables, rules, kv)
