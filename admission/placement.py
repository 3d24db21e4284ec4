"""Where requests run: an earliest-finish list schedule with late binding.

Compiled; the same source runs as plain Python (:func:`admission.jit.plain`), and a property test holds both to the
same schedule. Times are seconds from now, work is in tokens.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

import numpy as np

from admission.core import work_of
from admission.decode_target import after_all, decode_lane, delay_s, hand_off_targets, loss
from admission.jit import compiled
from admission.lane_arrays import Fleet, Floats, Ints, Load, ends_after, head_start_s, may_take, refresh
from admission.request_arrays import HOLD, SEND, Placed, Queue, Rules

STRAY = 0.25
"""A prompt goes to a worker that does not prefer prompts if it ends earlier by this share of its own time there."""


PRICE_S = 0.5
"""Seconds by which a prompt may end later to spare a worker the loss of its whole prompt rate to a tight decode."""


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
        if not _some_lane_ends_by(i, queue, fleet, load, rules.elastic):
            continue
        target = np.full(fleet.kind.max() + 1, -1, np.int64)
        hand_off_targets(i, queue, fleet, load, tables, rules, kv, target)
        lane = decode = -1
        best_s = best_score = math.inf
        for at in range(fleet.kind.shape[0]):
            if not may_take(fleet, at, rules.elastic):
                continue
            finish_s = ends_after(fleet, load, at, _work(i, queue, fleet, at))
            if finish_s > queue.due_s[i] or finish_s >= best_score:
                continue
            stray_s = 0.0 if fleet.likes_prefill[at] else STRAY * (finish_s - load.end_s[at])
            to = decode_lane(i, at, finish_s, queue, fleet, load, tables, rules, kv, target)
            if to < 0:
                continue
            score = (
                finish_s + stray_s + PRICE_S * (loss(i, to, queue, fleet, load, rules.elastic) if rules.pack else 0.0)
            )
            if score < best_score:
                lane, decode, best_s, best_score = at, to, finish_s, score
        if lane < 0:
            continue
        placed.prefill[i], placed.decode[i] = lane, decode
        placed.start_s[i], placed.finish_s[i] = load.end_s[lane] - load.first_s[lane], best_s
        work = _work(i, queue, fleet, lane)
        placed.action[i] = SEND if _binds(i, lane, work, queue, load, budget[lane, column[i]], rules) else HOLD
        _commit(i, lane, decode, work, placed, queue, fleet, load, rules, kv)


@compiled
def _some_lane_ends_by(i: int, queue: Queue, fleet: Fleet, load: Load, elastic: bool) -> bool:
    """Whether any lane could end the prompt in time: cheap to know before anything else."""
    for lane in range(fleet.kind.shape[0]):
        if load.end_s[lane] >= queue.due_s[i] or not may_take(fleet, lane, elastic):
            continue
        if ends_after(fleet, load, lane, _work(i, queue, fleet, lane)) <= queue.due_s[i]:
            return True
    return False


@compiled
def _work(i: int, queue: Queue, fleet: Fleet, lane: int) -> float:
    cached = queue.cached[i] if queue.prefix[i] == lane else 0.0
    return work_of(fleet, lane, queue.tokens[i], cached)


@compiled
def _binds(i: int, lane: int, work: float, queue: Queue, load: Load, budget: float, rules: Rules) -> bool:
    """Late binding: send when the worker is about to need it and it will not crowd out what the worker has."""
    if queue.bind[i]:
        return True
    joins = load.sent[lane] + work <= load.chunk[lane] and load.sent[lane] >= load.backlog[lane]
    soon = load.end_s[lane] - load.first_s[lane] <= rules.soon_s or joins
    light = load.backlog[lane] <= 0 or joins or load.backlog[lane] + work <= rules.dispatch_share * budget
    return soon and light


@compiled
def _commit(
    i: int,
    lane: int,
    decode: int,
    work: float,
    placed: Placed,
    queue: Queue,
    fleet: Fleet,
    load: Load,
    rules: Rules,
    kv: Floats,
) -> None:
    if load.backlog[decode] > 0 and not (decode == lane and after_all(i, lane, queue, load)):
        load.slack_s[decode] -= delay_s(i, decode, queue, fleet, load)
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
    due_s = queue.due_s[i]
    if decode != lane:
        due_s -= head_start_s(decode, queue.tpot_s[i], fleet, load, rules.hop_s, rules.elastic)
    load.last_due_s[lane] = max(load.last_due_s[lane], due_s)
    load.slack_s[lane] = min(load.slack_s[lane], due_s - placed.finish_s[i])
