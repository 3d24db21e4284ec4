"""Where requests run: an earliest-finish list schedule with late binding, and the rules for decode workers.

Compiled; the same source runs as plain Python (:func:`admission.jit.plain`), and a property test holds both to the
same schedule. Times are seconds from now, work is in tokens.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math
from typing import NamedTuple, cast

import numpy as np

from admission.core import kv_of, work_of
from admission.jit import compiled
from admission.lane_arrays import (
    Bools,
    Columns,
    Fleet,
    Floats,
    Ints,
    Load,
    batch_s,
    dtype_of,
    ends_after,
    refresh,
    tokens_in,
)

HOLD, SEND, WAIT = 0, 1, 2
"""Actions: promised and still held, dispatched, and not placed."""

STRAY = 0.25
"""A prompt goes to a worker that does not prefer prompts if it ends earlier by this share of its own time there."""

KEEP = 0.5
"""Share of its decode capacity that a worker uses which does not prefer decoding, where others do."""

CHEAP_BASE = 0.4
"""A hand-off buys nothing if an iteration's fixed cost is under this share of the TPOT."""


class Queue(Columns):
    """Held requests, one row each. ``due_s`` and ``tpot_s`` are infinite, and ``bind`` False, without an SLO.

    ``table`` is the row of the survival table, ``prefix`` the lane that has ``cached`` tokens (-1: none), and
    ``bind`` says that the request has been held for long enough.
    """

    tokens: Floats
    due_s: Floats
    tpot_s: Floats
    generated: Ints
    left: Ints
    table: Ints
    prefix: Ints
    cached: Floats
    bind: Bools


class Rules(NamedTuple):
    """The options that placement knows, as plain values."""

    soon_s: float
    hop_s: float
    decode_load: float
    dispatch_share: float
    pack: bool
    elastic: bool
    loose_share: float


class Placed(Columns):
    """By request: what to do, the lanes, and when its prompt starts and ends."""

    action: Ints
    prefill: Ints
    decode: Ints
    start_s: Floats
    finish_s: Floats


QUEUE = dtype_of(Queue)
PLACED = dtype_of(Placed)


def nothing_placed(count: int) -> Placed:
    """What :func:`promise` and :func:`admission.leftover.fill` write to."""
    placed = np.zeros(count, PLACED)
    placed["action"] = WAIT
    placed["prefill"] = placed["decode"] = -1
    placed["finish_s"] = math.inf
    return cast(Placed, placed)


@compiled
def promise(
    order: Ints, queue: Queue, fleet: Fleet, load: Load, tables: Floats, budget: Floats, column: Ints, rules: Rules,
    placed: Placed,
) -> None:  # fmt: skip
    """Place requests in this order, each where its prompt ends first, if that and all that is promised stays in time.

    ``budget[lane, column[i]]`` is what a lane can do by request i's deadline. What does not fit stays WAIT.
    """
    kv = np.empty((fleet.kv.shape[0], load.kv.shape[1]))
    for i in order:
        target = np.full(fleet.kind.max() + 1, -1, np.int64)
        _targets(i, queue, fleet, load, tables, rules, kv, target)
        lane = -1
        best_s = best_score = math.inf
        for at in range(fleet.kind.shape[0]):
            if not may_take(fleet, at, rules.elastic):
                continue
            finish_s = ends_after(fleet, load, at, _work(i, queue, fleet, at))
            stray_s = 0.0 if fleet.likes_prefill[at] else STRAY * (finish_s - load.end_s[at])
            if finish_s > queue.due_s[i] or finish_s + stray_s >= best_score:
                continue
            if decode_lane(i, at, finish_s, queue, fleet, load, tables, rules, kv, target) >= 0:
                lane, best_s, best_score = at, finish_s, finish_s + stray_s
        if lane < 0:
            continue
        decode = decode_lane(i, lane, best_s, queue, fleet, load, tables, rules, kv, target)
        placed.prefill[i], placed.decode[i] = lane, decode
        placed.start_s[i], placed.finish_s[i] = load.end_s[lane], best_s
        work = _work(i, queue, fleet, lane)
        placed.action[i] = SEND if _binds(i, lane, work, queue, load, budget[lane, column[i]], rules) else HOLD
        _commit(i, lane, decode, work, placed, queue, fleet, load, kv)


@compiled
def may_take(fleet: Fleet, lane: int, elastic: bool) -> bool:
    """Whether prompts go to this lane: to those that prefer them, or to all that may."""
    return fleet.prefills[lane] and (elastic or fleet.likes_prefill[lane] or not fleet.likes_prefill.any())


@compiled
def may_keep(fleet: Fleet, lane: int, elastic: bool) -> bool:
    """Whether decodes go to this lane."""
    return fleet.decodes[lane] and (elastic or fleet.likes_decode[lane] or not fleet.likes_decode.any())


@compiled
def _work(i: int, queue: Queue, fleet: Fleet, lane: int) -> float:
    cached = queue.cached[i] if queue.prefix[i] == lane else 0.0
    return work_of(fleet, lane, queue.tokens[i], cached)


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
def _patient(i: int, lane: int, own: bool, queue: Queue, fleet: Fleet, load: Load) -> bool:
    """Whether the lane's promised prompts stay in time with one more decoder, whose own prompt may be among them."""
    if load.backlog[lane] <= 0 or math.isinf(load.slack_s[lane]) or (own and _after_all(i, lane, queue, load)):
        return True
    return _delay_s(i, lane, queue, fleet, load) <= load.slack_s[lane]


@compiled
def _after_all(i: int, lane: int, queue: Queue, load: Load) -> bool:
    """Whether a lane computes the prompt after all that it has, so that its decoder comes after them too."""
    return queue.due_s[i] >= load.last_due_s[lane]


@compiled
def _delay_s(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load) -> float:
    """How much later the lane is through its backlog with one more decoder."""
    before = (load.decoders[lane], load.context[lane], load.tightest_s[lane], load.end_s[lane])
    load.decoders[lane] += 1
    load.context[lane] += queue.tokens[i]
    load.tightest_s[lane] = min(load.tightest_s[lane], queue.tpot_s[i])
    refresh(fleet, load, lane)
    delay_s = load.end_s[lane] - before[3]
    load.decoders[lane], load.context[lane], load.tightest_s[lane] = before[0], before[1], before[2]
    refresh(fleet, load, lane)
    load.end_s[lane] = before[3]
    return delay_s


@compiled
def _limit(fleet: Fleet, lane: int, rules: Rules) -> float:
    return rules.decode_load * (KEEP if not fleet.likes_decode[lane] and fleet.likes_decode.any() else 1.0)


@compiled
def _takes(
    i: int,
    lane: int,
    own: bool,
    share: float,
    queue: Queue,
    fleet: Fleet,
    load: Load,
    tables: Floats,
    rules: Rules,
    kv: Floats,
) -> bool:
    return (
        share <= _limit(fleet, lane, rules)
        and _kv_fits(i, lane, queue, fleet, load.kv, tables, kv[lane])
        and _patient(i, lane, own, queue, fleet, load)
    )


@compiled
def _targets(
    i: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, rules: Rules, kv: Floats, target: Ints
) -> None:
    """The best lane to hand decodes to, by kind of engine: the fullest that is as tight already, else the emptiest."""
    score = np.full(target.shape[0], -math.inf)
    for lane in range(fleet.kind.shape[0]):
        if not may_keep(fleet, lane, rules.elastic):
            continue
        share = used(i, lane, queue, fleet, load)
        as_tight = rules.pack and load.tightest_s[lane] <= queue.tpot_s[i]
        merit = share if as_tight else -1.0 - share
        kind = fleet.kind[lane]
        if merit > score[kind] and _takes(i, lane, False, share, queue, fleet, load, tables, rules, kv):
            score[kind], target[kind] = merit, lane


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
    if handed >= 0 and _wait_s(handed, fleet, load, rules) > queue.due_s[i] - finish_s + queue.tpot_s[i]:
        handed = -1
    if may_keep(fleet, lane, rules.elastic):
        base_s = fleet.base[lane].max()
        idle_hand_off = queue.tpot_s[i] >= load.tightest_s[lane] or base_s < CHEAP_BASE * queue.tpot_s[i]
        share = used(i, lane, queue, fleet, load)
        if (idle_hand_off or handed < 0) and _takes(i, lane, True, share, queue, fleet, load, tables, rules, kv):
            return lane
    fits_here = load.kv[lane, 0] + queue.tokens[i] + fleet.block[lane] <= fleet.kv[lane]
    return handed if fits_here else -1


@compiled
def _wait_s(lane: int, fleet: Fleet, load: Load, rules: Rules) -> float:
    """How long after its first token a decoder that is handed over may have to wait for its second."""
    step_s = batch_s(fleet, lane, load.decoders[lane] + 1, load.extra_s[lane])
    busy_s = fleet.longest_s[lane] if may_take(fleet, lane, rules.elastic) else step_s
    return rules.hop_s + busy_s + step_s


@compiled
def _binds(i: int, lane: int, work: float, queue: Queue, load: Load, budget: float, rules: Rules) -> bool:
    """Late binding: send when the worker is about to need it and it will not crowd out what the worker has."""
    if queue.bind[i]:
        return True
    joins = load.sent[lane] + work <= load.chunk[lane] and load.sent[lane] >= load.backlog[lane]
    soon = load.end_s[lane] <= rules.soon_s or joins
    light = load.backlog[lane] <= 0 or joins or load.backlog[lane] + work <= rules.dispatch_share * budget
    return soon and light


@compiled
def _commit(
    i: int, lane: int, decode: int, work: float, placed: Placed, queue: Queue, fleet: Fleet, load: Load, kv: Floats
) -> None:
    if load.backlog[decode] > 0 and not (decode == lane and _after_all(i, lane, queue, load)):
        load.slack_s[decode] -= _delay_s(i, decode, queue, fleet, load)
    kv_of_one = kv[decode]
    load.kv[decode] += kv_of_one
    load.all_kv[decode] += kv_of_one
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
    load.last_due_s[lane] = max(load.last_due_s[lane], queue.due_s[i])
    load.slack_s[lane] = min(load.slack_s[lane], queue.due_s[i] - placed.finish_s[i])
