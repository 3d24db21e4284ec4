"""Where requests run: an earliest-finish list schedule with late binding.

Compiled; the same source runs as plain Python (:func:`admission.jit.plain`), and a property test holds both to the
same schedule. Times are seconds from now, work is in tokens.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

import numpy as np

from admission.core import add_to, work_of
from admission.decode_target import decode_lane, hand_off_targets, loss, stays
from admission.jit import compiled
from admission.lane_arrays import Fleet, Floats, Ints, Load, head_start_s, may_take, refresh, take_link
from admission.request_arrays import HOLD, SEND, Placed, Queue, Rules
from admission.timeline import TICKS, Timeline, add_decoder, add_work, column_of, ends_s, next_chunk, stays_in_time


@compiled
def promise(
    order: Ints, queue: Queue, fleet: Fleet, load: Load, tables: Floats, line: Timeline, rules: Rules, placed: Placed
) -> None:
    """Place requests in this order, each where its prompt ends first, if that and all that is promised stays in time.

    What does not fit stays WAIT.
    """
    kv = np.empty((fleet.kv.shape[0], load.kv.shape[1]))
    target = np.full(fleet.kind.max() + 1, -1, np.int64)
    for i in order:
        column = column_of(line, queue.due_s[i] * TICKS)
        if column < 0 or not _some_lane_ends(i, column, queue, fleet, line, rules.elastic):
            continue
        target[:] = -1
        hand_off_targets(i, queue, fleet, load, tables, line, rules, kv, target)
        lane = decode = -1
        best_s = best_score = math.inf
        for at in range(fleet.kind.shape[0]):
            if not may_take(fleet, at, rules.elastic):
                continue
            work = _work(i, queue, fleet, at)
            finish_s = ends_s(fleet, line, at, column, work)
            if finish_s >= best_score:
                continue
            stray_s = 0.0 if fleet.likes_prefill[at] else rules.stray * (finish_s - line.offset_s[at])
            handed = decode_lane(i, at, finish_s, queue, fleet, load, tables, rules, kv, target)
            for to in (handed, at):
                if to < 0:
                    continue
                if to != handed and not stays(i, at, queue, fleet, load, tables, rules, kv, target):
                    continue
                score = finish_s + stray_s
                if rules.pack:
                    score += rules.pack_s * loss(i, to, queue, fleet, load, rules.elastic)
                if score < best_score and _in_time(i, at, to, work, finish_s, queue, fleet, load, line, rules):
                    lane, decode, best_s, best_score = at, to, finish_s, score
                    break
        if lane < 0:
            continue
        placed.prefill[i], placed.decode[i], placed.finish_s[i] = lane, decode, best_s
        work = _work(i, queue, fleet, lane)
        chunk = next_chunk(fleet, load, line, lane)
        later = math.floor(load.sent[lane] / chunk)  # iterations until one has room for more
        placed.start_s[i] = fleet.ready_s[lane] + later * fleet.longest_s[lane]
        placed.action[i] = SEND if queue.bind[i] or placed.start_s[i] <= rules.soon_s else HOLD
        _commit(i, lane, decode, work, placed, queue, fleet, load, line, rules, kv)


@compiled
def _some_lane_ends(i: int, column: int, queue: Queue, fleet: Fleet, line: Timeline, elastic: bool) -> bool:
    """Whether any lane could end the prompt in time: cheap to know before anything else."""
    for lane in range(fleet.kind.shape[0]):
        room = line.budget[lane, column] - line.work[lane, column]
        if room > 0 and may_take(fleet, lane, elastic) and _work(i, queue, fleet, lane) <= room:
            return True
    return False


@compiled
def _work(i: int, queue: Queue, fleet: Fleet, lane: int) -> float:
    cached = queue.cached[i] if queue.prefix[i] == lane else 0.0
    return work_of(fleet, lane, queue.tokens[i], cached)


@compiled
def _due_s(
    i: int, lane: int, decode: int, finish_s: float, queue: Queue, fleet: Fleet, load: Load, rules: Rules
) -> float:
    """When the prompt must be done there."""
    if decode == lane:
        return queue.due_s[i]
    return queue.due_s[i] - head_start_s(
        decode, queue.tokens[i], queue.tpot_s[i], finish_s, rules.head_start, fleet, load, rules.hop_s, rules.elastic
    )


@compiled
def _in_time(
    i: int, lane: int, decode: int, work: float, finish_s: float, queue: Queue, fleet: Fleet, load: Load,
    line: Timeline, rules: Rules,
) -> bool:  # fmt: skip
    """Whether everything on the lane that computes the prompt stays in time; that on the other is known."""
    due, column = (
        queue.due_s[i] * TICKS,
        column_of(line, _due_s(i, lane, decode, finish_s, queue, fleet, load, rules) * TICKS),
    )
    if column < 0:
        return False
    tpot = queue.tpot_s[i] * TICKS if decode == lane else math.inf
    return stays_in_time(fleet, line, lane, column, work, due, tpot, queue.tokens[i])


@compiled
def _commit(
    i: int, lane: int, decode: int, work: float, placed: Placed, queue: Queue, fleet: Fleet, load: Load,
    line: Timeline, rules: Rules, kv: Floats,
) -> None:  # fmt: skip
    due = queue.due_s[i] * TICKS
    add_work(line, lane, _due_s(i, lane, decode, placed.finish_s[i], queue, fleet, load, rules) * TICKS, work)
    if decode != lane:
        take_link(decode, queue.tokens[i], fleet, load)
    add_decoder(fleet, line, decode, due, queue.tpot_s[i] * TICKS, queue.tokens[i])
    add_to(load.kv, decode, kv[decode])
    add_to(load.all_kv, decode, kv[decode])
    if decode != lane:
        load.kv[lane] += queue.tokens[i] + fleet.block[lane] - 1
        load.all_kv[lane] += queue.tokens[i] + fleet.block[lane] - 1
        load.seqs[lane] += 1
    load.seqs[decode] += 1
    load.decoders[decode] += 1
    load.context[decode] += queue.tokens[i]
    load.rate[decode] += 1 / queue.tpot_s[i]
    load.tightest_s[decode] = min(load.tightest_s[decode], queue.tpot_s[i])
    load.backlog[lane] += work
    if placed.action[i] == SEND:
        load.sent[lane] += work
    refresh(fleet, load, decode)
    refresh(fleet, load, lane)
