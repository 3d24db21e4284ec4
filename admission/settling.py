"""What becomes of each held request, in numbers: who is promised, who is not, and who runs in left-over room.

Compiled, in one call, for the same reason as :mod:`admission.situation`.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math
from typing import NamedTuple

import numpy as np

from admission.contest import contest
from admission.jit import compiled
from admission.lane_arrays import Bools, Fleet, Floats, Ints, Load
from admission.late_jobs import greedy, select
from admission.leftover import fill
from admission.placement import promise
from admission.refusal import Limits, limits_of
from admission.request_arrays import HOLD, SEND, WAIT, HeldRows, Placed, Queue, Rules
from admission.timeline import Timeline


class Settled(NamedTuple):
    """Numbers of requests, and what is to be said about them.

    ``promised`` are sent now, the most urgent first, ``loose`` without a promise, the oldest first. ``denied`` are not
    promised, for :class:`Limits`. ``impatient`` would wait for ``waits_s`` and don't want to. ``wake_s`` is after how
    long to plan again, infinite if only an event changes the plan.
    """

    promised: Ints
    loose: Ints
    denied: Ints
    limits: Limits
    impatient: Ints
    waits_s: Floats
    wake_s: float


@compiled
def settle(
    asked: HeldRows, queue: Queue, zero_load_s: Floats, fleet: Fleet, load: Load, takers: Bools, tables: Floats,
    line: Timeline, prompt_rate: float, bind_after_s: float, now_s: float, rules: Rules, placed: Placed,
) -> Settled:  # fmt: skip
    """Place the requests; ``placed`` and the load are written to."""
    hopeful = hopes(asked, queue, zero_load_s, rules)
    order = _winners_first(hopeful, asked, queue, fleet, load, takers, tables, line, rules)
    promise(order, queue, fleet, load, tables, line, rules, placed)
    waiting = _by_age(asked, placed, rules)
    denied, waiting = _told(waiting, asked)
    limits = limits_of(denied, queue, fleet, load)
    _fill(waiting, hopeful, asked, queue, fleet, load, tables, now_s, rules, placed)
    impatient, waits_s = _lose_patience(waiting, asked, load, takers, prompt_rate, now_s, placed)
    promised, loose = _sent(waiting, placed)
    wake_s = _wake_s(asked, load, takers, bind_after_s, now_s, rules, placed)
    return Settled(promised, loose, denied, limits, impatient, waits_s, wake_s)


@compiled
def _told(waiting: Ints, asked: HeldRows) -> tuple[Ints, Ints]:
    """Who is to be told that it is not promised, which is said once; and who waits on, not wanting to be refused."""
    denied, left = np.empty_like(waiting), np.empty_like(waiting)
    some = rest = 0
    for i in waiting:
        firm = asked.offline[i] == 0 and asked.reject[i] == 1
        if firm or (asked.offline[i] == 0 and asked.deferred[i] == 0):
            denied[some] = i
            some += 1
        if not firm:
            left[rest] = i
            rest += 1
    return denied[:some], left[:rest]


@compiled
def _lose_patience(
    waiting: Ints, asked: HeldRows, load: Load, takers: Bools, prompt_rate: float, now_s: float, placed: Placed
) -> tuple[Ints, Floats]:
    """Who would wait longer than its sender wants to even if nothing else came and all decoders left; how long."""
    ahead = 0.0
    for lane in range(takers.shape[0]):
        if takers[lane]:
            ahead += load.backlog[lane] + load.loose_tokens[lane]
    lost, waits_s = np.empty_like(waiting), np.empty(waiting.shape[0])
    count = 0
    for i in waiting:
        if placed.action[i] != WAIT:
            continue
        wait_s = ahead / prompt_rate if prompt_rate > 0 else 0.0
        if now_s + wait_s > asked.arrival_s[i] + asked.patience_s[i]:
            lost[count], waits_s[count] = i, wait_s
            placed.action[i] = HOLD
            count += 1
        else:
            ahead += asked.tokens[i]
    return lost[:count], waits_s[:count]


@compiled
def _sent(waiting: Ints, placed: Placed) -> tuple[Ints, Ints]:
    """Who is sent with a promise, and of those that waited without one."""
    promised, loose = np.empty(placed.action.shape[0], np.int64), np.empty_like(waiting)
    count = rest = 0
    for i in range(promised.shape[0]):
        if placed.action[i] == SEND and placed.finish_s[i] < math.inf:
            promised[count] = i
            count += 1
    for i in waiting:
        if placed.action[i] == SEND:
            loose[rest] = i
            rest += 1
    return promised[:count], loose[:rest]


@compiled
def hopes(asked: HeldRows, queue: Queue, zero_load_s: Floats, rules: Rules) -> Ints:
    """Who could be in time if all workers were idle; the others are relegated."""
    out, count = np.empty(queue.due_s.shape[0], np.int64), 0
    for i in range(out.shape[0]):
        possible = zero_load_s[i] <= queue.due_s[i] and queue.tpot_s[i] < math.inf and asked.missed_round[i] == 0
        if possible and (rules.deferral or asked.deferred[i] == 0):
            out[count] = i
            count += 1
    return out[:count]


@compiled
def _winners_first(
    hopeful: Ints, asked: HeldRows, queue: Queue, fleet: Fleet, load: Load, takers: Bools, tables: Floats,
    line: Timeline, rules: Rules,
) -> Ints:  # fmt: skip
    """The most valuable set that is feasible for the cluster as a whole, then the others, each by deadline."""
    if hopeful.shape[0] == 0:
        return hopeful
    stakes = contest(hopeful, queue, fleet, load, takers, line, tables, rules.elastic)
    if rules.optimal:
        value = np.empty(hopeful.shape[0])
        for k in range(value.shape[0]):
            value[k] = asked.value[hopeful[k]] * (1 + rules.later_round * asked.round[hopeful[k]])
        wins = select(stakes.work, stakes.kv, value, stakes.budget, stakes.kv_limit)
    else:
        wins = greedy(stakes.work, stakes.kv, stakes.budget, stakes.kv_limit)
    order, first, second = np.empty_like(hopeful), 0, wins.sum()
    for k in range(hopeful.shape[0]):
        if wins[k]:
            order[first] = hopeful[k]
            first += 1
        else:
            order[second] = hopeful[k]
            second += 1
    return order


@compiled
def _by_age(asked: HeldRows, placed: Placed, rules: Rules) -> Ints:
    """What is not promised, the longest waiting first; offline work a while after deferred work of its age."""
    waiting, since_s = np.empty(placed.action.shape[0], np.int64), np.empty(placed.action.shape[0])
    count = 0
    for i in range(waiting.shape[0]):
        if placed.action[i] == WAIT:
            waiting[count], since_s[count] = i, asked.arrival_s[i] + rules.offline_lag_s * asked.offline[i]
            count += 1
    return waiting[np.argsort(since_s[:count], kind="mergesort")]


@compiled
def _fill(
    waiting: Ints, hopeful: Ints, asked: HeldRows, queue: Queue, fleet: Fleet, load: Load, tables: Floats,
    now_s: float, rules: Rules, placed: Placed,
) -> None:  # fmt: skip
    """Left-over capacity, and its guaranteed share for who has waited long and can't be promised any more."""
    may_win = np.zeros(asked.arrival_s.shape[0], np.bool_)
    for i in hopeful:
        may_win[i] = True
    group, sizes = np.empty_like(waiting), np.zeros(4, np.int64)
    for k in range(waiting.shape[0]):
        i = waiting[k]
        wait_s = rules.owed_s
        if asked.offline[i] == 0:
            wait_s = min(wait_s, rules.owed_ttft * asked.ttft_s[i])
        owed = asked.arrival_s[i] + wait_s <= now_s
        group[k] = 2 if may_win[i] else 0 if owed else 1
        sizes[group[k] + 1] += 1
    at, order = np.cumsum(sizes), np.empty_like(waiting)
    for k in range(waiting.shape[0]):
        order[at[group[k]]] = waiting[k]
        at[group[k]] += 1
    sharing = sizes[1] if rules.loose_share > 0 else 0
    fill(order, queue, fleet, load, tables, rules, sharing, placed)


@compiled
def _wake_s(
    asked: HeldRows, load: Load, takers: Bools, bind_after_s: float, now_s: float, rules: Rules, placed: Placed
) -> float:
    """When a held prompt's worker is about to need it, or a worker has room for best effort."""
    wake_s = starts_s = oldest_s = math.inf
    waits_on = False
    for i in range(placed.action.shape[0]):
        if placed.action[i] == HOLD:
            oldest_s = min(oldest_s, asked.arrival_s[i])
            if placed.finish_s[i] < math.inf:
                starts_s = min(starts_s, placed.start_s[i])
        waits_on |= placed.action[i] == WAIT
    if starts_s < math.inf:
        wake_s = starts_s - rules.soon_s
        if bind_after_s < math.inf:
            wake_s = min(wake_s, oldest_s + bind_after_s - now_s)
    if waits_on:
        for lane in range(takers.shape[0]):
            if takers[lane]:
                wake_s = min(wake_s, load.end_s[lane])
    return wake_s
