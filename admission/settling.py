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
from admission.leftover import fill, waits
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
    _promise(hopeful, asked, queue, fleet, load, takers, tables, line, rules, placed)
    waiting = _by_age(asked, placed, rules)
    firm = (asked.offline == 0) & (asked.reject == 1)
    denied = waiting[(firm | ((asked.offline == 0) & (asked.deferred == 0)))[waiting]]
    limits = limits_of(denied, queue, fleet, load)
    waiting = waiting[~firm[waiting]]
    _fill(waiting, hopeful, asked, queue, fleet, load, tables, now_s, rules, placed)
    still = waiting[placed.action[waiting] == WAIT]
    ahead = 0.0
    for lane in range(takers.shape[0]):
        if takers[lane]:
            ahead += load.backlog[lane] + load.loose_tokens[lane]
    patient_s = (asked.arrival_s + asked.patience_s - now_s)[still]
    waits_s = waits(asked.tokens[still], patient_s, ahead, prompt_rate)
    lost = waits_s > patient_s
    placed.action[still[lost]] = HOLD
    sent = placed.action == SEND
    promised = np.flatnonzero(sent & (placed.finish_s < math.inf))
    wake_s = _wake_s(asked, load, takers, bind_after_s, now_s, rules, placed)
    return Settled(promised, waiting[sent[waiting]], denied, limits, still[lost], waits_s[lost], wake_s)


@compiled
def hopes(asked: HeldRows, queue: Queue, zero_load_s: Floats, rules: Rules) -> Ints:
    """Who could be in time if all workers were idle; the others are relegated."""
    possible = (zero_load_s <= queue.due_s) & (queue.tpot_s < math.inf) & (asked.missed_round == 0)
    if not rules.deferral:
        possible &= asked.deferred == 0
    return np.flatnonzero(possible)


@compiled
def _promise(
    hopeful: Ints, asked: HeldRows, queue: Queue, fleet: Fleet, load: Load, takers: Bools, tables: Floats,
    line: Timeline, rules: Rules, placed: Placed,
) -> None:  # fmt: skip
    if hopeful.shape[0] == 0:
        return
    stakes = contest(hopeful, queue, fleet, load, takers, line, tables, rules.elastic)
    if rules.optimal:
        value = (asked.value * (1 + rules.later_round * asked.round))[hopeful]
        wins = select(stakes.work, stakes.kv, value, stakes.budget, stakes.kv_limit)
    else:
        wins = greedy(stakes.work, stakes.kv, stakes.budget, stakes.kv_limit)
    promise(hopeful[wins], queue, fleet, load, tables, line, rules, placed)
    promise(hopeful[~wins], queue, fleet, load, tables, line, rules, placed)


@compiled
def _by_age(asked: HeldRows, placed: Placed, rules: Rules) -> Ints:
    """What is not promised, the longest waiting first; offline work a while after deferred work of its age."""
    waiting = np.flatnonzero(placed.action == WAIT)
    since_s = (asked.arrival_s + rules.offline_lag_s * asked.offline)[waiting]
    return waiting[np.argsort(since_s, kind="mergesort")]


@compiled
def _fill(
    waiting: Ints, hopeful: Ints, asked: HeldRows, queue: Queue, fleet: Fleet, load: Load, tables: Floats,
    now_s: float, rules: Rules, placed: Placed,
) -> None:  # fmt: skip
    """Left-over capacity, and its guaranteed share for who has waited long and can't be promised any more."""
    owed = np.empty(asked.arrival_s.shape[0], np.bool_)
    for i in range(owed.shape[0]):
        wait_s = rules.owed_s
        if asked.offline[i] == 0:
            wait_s = min(wait_s, rules.owed_ttft * asked.ttft_s[i])
        owed[i] = asked.arrival_s[i] + wait_s <= now_s
    may_win = np.zeros(owed.shape[0], np.bool_)
    may_win[hopeful] = True
    owed &= ~may_win
    shared = rules.loose_share > 0
    fill(waiting[owed[waiting]], queue, fleet, load, tables, rules, shared, placed)
    fill(waiting[(~owed & ~may_win)[waiting]], queue, fleet, load, tables, rules, False, placed)
    fill(waiting[may_win[waiting]], queue, fleet, load, tables, rules, False, placed)


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
