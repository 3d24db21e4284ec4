"""What workers can do by when, and what they have promised to have done: demand bounds on a grid of deadlines.

By a time ``t`` the decoder that owes most owes ``rounds`` tokens, so there are that many iterations (fewer where drafts
are seen to make more of one) and one more that ends at ``t``. In them are all tokens due by then or within a guard
time after it, the ``riders``. What is left of them, or without the last of them and until the deadline before it, is
the lane's budget for prompts (:mod:`admission.budget` says the same in plain Python). A set of prompts is in time if at
each deadline the work due by then is within the budget. A prompt that is placed adds work from its deadline on, and
after it a decoder.

Compiled. Times are ticks from now (:data:`TICKS` a second), work is in tokens.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math
from typing import NamedTuple

import numpy as np

from admission.iterations import budget_of, seconds_of
from admission.jit import compiled
from admission.lane_arrays import Bools, Fleet, Floats, Ints, Load, tokens_in

TICKS = 1e6

MOST_DEADLINES = 48
"""Deadlines of held requests on the grid; of more, each counts as the one before it that is."""

GUARD = 2.0
"""A decoder takes part in batches while its next token is due within so many of the longest: engines let those with
more slack skip some for prompts (:data:`common.batching_table.LOOSE`)."""

_STEPS = np.round(0.015 * 1.2 ** np.arange(28) * TICKS)
"""Times on every grid, so that it is known when a prompt will end and not only that it is in time."""


class Timeline(NamedTuple):
    """By lane and time of the grid. ``budget`` never falls over time; ``work`` is what prompts due by then need.

    ``rounds`` are tokens of the decoder that owes most, the last of them due ``since`` ticks before (infinite without
    any); ``riders`` are about how many tokens of decoders are in iterations until then, ``decoders`` and their
    ``context`` count with those to come.
    ``offset_s`` is when a prompt that is sent now can begin, ``slack_s`` how soon the first decoder's token is due.
    """

    times: Floats
    rounds: Floats
    since: Floats
    riders: Floats
    decoders: Floats
    context: Floats
    budget: Floats
    work: Floats
    offset_s: Floats
    slack_s: Floats


@compiled
def grid(deadlines: Floats, kept: Floats) -> Floats:
    """Ascending times that hold all of ``kept`` and up to :data:`MOST_DEADLINES` of the deadlines, in ticks."""
    unique = np.unique(deadlines)
    count, last = min(unique.shape[0], MOST_DEADLINES), 0.0
    out = np.empty(count + kept.shape[0] + _STEPS.shape[0])
    for k in range(count):
        at = k if count == unique.shape[0] else round(k * (unique.shape[0] - 1) / (count - 1))
        out[k] = last = unique[at]
    for due in kept:
        if due > 0:
            out[count] = due
            last = max(last, due)
            count += 1
    for step in _STEPS:
        if step < last:
            out[count] = step
            count += 1
    return np.unique(out[:count])


@compiled
def timeline(
    fleet: Fleet, load: Load, lane_of: Ints, slack: Floats, tpot: Floats, late_s: float, times: Floats
) -> Timeline:
    """Of what decodes now.

    A prompt that can't be on a worker within ``late_s`` misses the batch that begins before.
    """
    lanes, count = load.decoders.shape[0], times.shape[0]
    shape = (lanes, count)
    out = Timeline(
        times, np.zeros(shape), np.full(shape, math.inf), np.zeros(shape), np.zeros(shape), np.zeros(shape),
        np.zeros(shape), np.zeros(shape), np.zeros(lanes), np.full(lanes, math.inf),
    )  # fmt: skip
    _ride(fleet, out, lane_of, slack, tpot)
    begins, first, pace = _paces(lane_of, slack, tpot, lanes)
    for lane in range(lanes):
        for k in range(begins[lane], begins[lane + 1]):
            if first[k] == math.inf:
                break
            for h in range(count):
                owed = _owed(times[h], first[k], pace[k])
                since = _since(out, lane, h, owed, times[h] - first[k] - (owed - 1) * pace[k])
                out.rounds[lane, h], out.since[lane, h] = max(out.rounds[lane, h], owed), since
            out.slack_s[lane] = min(out.slack_s[lane], first[k] / TICKS)
        out.decoders[lane] = load.decoders[lane]
        out.context[lane] = load.context[lane]
        out.offset_s[lane] = fleet.ready_s[lane] + (load.first_s[lane] if fleet.ready_s[lane] <= late_s else 0.0)
        _refill(fleet, out, lane, 0)
    return out


@compiled
def _paces(lane_of: Ints, slack: Floats, tpot: Floats, lanes: int) -> tuple[Ints, Floats, Floats]:
    """Where each lane's part begins, and in it by distinct TPOT, ascending, the least slack; infinite past its last."""
    begins = np.zeros(lanes + 1, np.int64)
    for lane in lane_of:
        begins[lane + 1] += 1
    for lane in range(lanes):
        begins[lane + 1] += begins[lane]
    ends = begins[:-1].copy()
    first, pace = np.full(lane_of.shape[0], math.inf), np.empty(lane_of.shape[0])
    for k in range(lane_of.shape[0]):
        lane = lane_of[k]
        low, high = begins[lane], ends[lane]
        while low < high:
            middle = (low + high) // 2
            if pace[middle] < tpot[k]:
                low = middle + 1
            else:
                high = middle
        if low == ends[lane] or pace[low] != tpot[k]:
            for j in range(ends[lane], low, -1):
                first[j], pace[j] = first[j - 1], pace[j - 1]
            first[low], pace[low] = slack[k], tpot[k]
            ends[lane] += 1
        first[low] = min(first[low], slack[k])
    return begins, first, pace


@compiled
def _ride(fleet: Fleet, line: Timeline, lane_of: Ints, slack: Floats, tpot: Floats) -> None:
    """Tokens that are due by each time and a guard time after it: of each decoder a line that begins at one."""
    lanes, count = line.riders.shape
    rate, begun = np.zeros((lanes, count)), line.riders
    for k in range(lane_of.shape[0]):
        lane = lane_of[k]
        from_ = slack[k] - _guard(fleet, lane)
        first = column_of(line, from_)
        if first < 0 or line.times[first] < from_:
            first += 1
        if first < count:
            rate[lane, first] += 1 / tpot[k]
            begun[lane, first] += 1 - from_ / tpot[k]
    for lane in range(lanes):
        rates = begins = 0.0
        for h in range(count):
            rates += rate[lane, h]
            begins += begun[lane, h]
            line.riders[lane, h] = rates * line.times[h] + begins


@compiled
def _owed(time: float, slack: float, tpot: float) -> float:
    """Tokens that a decoder owes by then."""
    return math.floor((time - slack) / tpot) + 1.0 if time >= slack else 0.0


@compiled
def _guard(fleet: Fleet, lane: int) -> float:
    return GUARD * fleet.longest_s[lane] * TICKS


@compiled
def _since(line: Timeline, lane: int, h: int, owed: float, ticks: float) -> float:
    """With one more decoder, whose last token of those ``owed`` was due so many ticks before."""
    if owed <= 0 or owed < line.rounds[lane, h]:
        return line.since[lane, h]
    return ticks if owed > line.rounds[lane, h] else max(line.since[lane, h], ticks)


@compiled
def _refill(fleet: Fleet, line: Timeline, lane: int, first: int) -> None:
    """Compute a lane's budget anew from a column on."""
    best = line.budget[lane, first - 1] if first > 0 else -math.inf
    for h in range(first, line.times.shape[0]):
        best = max(
            best,
            _budget_at(
                fleet, line, lane, h, line.rounds[lane, h], line.since[lane, h], line.riders[lane, h],
                line.decoders[lane, h], line.context[lane, h],
            ),
        )  # fmt: skip
        line.budget[lane, h] = best


@compiled
def _budget_at(
    fleet: Fleet,
    line: Timeline,
    lane: int,
    h: int,
    rounds: float,
    since: float,
    riders: float,
    decoders: float,
    context: float,
) -> float:
    seconds = line.times[h] / TICKS - line.offset_s[lane]
    return budget_of(fleet, lane, seconds, rounds, since / TICKS, riders, decoders, context)


@compiled
def column_of(line: Timeline, due: float) -> int:
    """The last time of the grid that is not after ``due``; -1 if there is none."""
    low, high = 0, line.times.shape[0]
    while low < high:
        middle = (low + high) // 2
        if line.times[middle] <= due:
            low = middle + 1
        else:
            high = middle
    return low - 1


@compiled
def add_work(line: Timeline, lane: int, due: float, work: float) -> None:
    """A prompt on the lane, due then (or late already)."""
    for h in range(max(0, column_of(line, due)), line.times.shape[0]):
        line.work[lane, h] += work


@compiled
def add_prompts(line: Timeline, lanes: Ints, due: Floats, work: Floats) -> None:
    """Prompts that are on the lanes already."""
    for k in range(lanes.shape[0]):
        add_work(line, lanes[k], due[k], work[k])


@compiled
def add_decoder(fleet: Fleet, line: Timeline, lane: int, due: float, tpot: float, context: float) -> None:
    """A decoder whose first token is due then."""
    first = column_of(line, due) + 1
    for h in range(first, line.times.shape[0]):
        found = _joined(fleet, line, lane, h, due, tpot)
        line.rounds[lane, h], line.since[lane, h], line.riders[lane, h] = found
        line.decoders[lane, h] += 1
        line.context[lane, h] += context
    _refill(fleet, line, lane, first)


@compiled
def stays_in_time(
    fleet: Fleet, line: Timeline, lane: int, column: int, work: float, due: float, tpot: float, context: float
) -> bool:
    """Whether all of the lane's prompts are in time with this one from ``column`` on, and with its decoder.

    No work: it is prefilled elsewhere. An infinite TPOT: it is decoded elsewhere. A prompt that is late anyhow forbids
    nothing that is due after it.
    """
    count = line.times.shape[0]
    first = min(column if work > 0 else count, column_of(line, due) + 1 if tpot < math.inf else count)
    best = line.budget[lane, first - 1] if first > 0 else -math.inf  # until then all stays as it is
    for h in range(first, count):
        more = work if h >= column else 0.0
        need = line.work[lane, h] + more
        if need <= best or (more <= 0 and need > line.budget[lane, h]):
            continue
        by = h  # it has the largest budget so far, as a rule
        while need > best and by >= first and need <= line.budget[lane, by]:
            best = max(best, _budget_with(fleet, line, lane, by, due, tpot, context))
            by -= 1
        if need > best:
            return False
    return True


@compiled
def _budget_with(fleet: Fleet, line: Timeline, lane: int, h: int, due: float, tpot: float, context: float) -> float:
    """Until then, with one more decoder whose first token is due at ``due``, if its TPOT is finite."""
    if line.times[h] <= due or tpot == math.inf:
        return line.budget[lane, h]
    rounds, since, riders = _joined(fleet, line, lane, h, due, tpot)
    return _budget_at(
        fleet, line, lane, h, rounds, since, riders, line.decoders[lane, h] + 1, line.context[lane, h] + context
    )


@compiled
def _joined(fleet: Fleet, line: Timeline, lane: int, h: int, due: float, tpot: float) -> tuple[float, float, float]:
    """Rounds, since and riders with one more decoder, whose first token is due at ``due``, before that time."""
    owed = math.floor((line.times[h] - due) / tpot)
    since = _since(line, lane, h, owed, line.times[h] - due - owed * tpot)
    riders = line.riders[lane, h] + (line.times[h] + _guard(fleet, lane) - due) / tpot
    return max(line.rounds[lane, h], owed), since, riders


@compiled
def ends_s(fleet: Fleet, line: Timeline, lane: int, column: int, work: float) -> float:
    """When the lane is through so much work and what is due before it, in seconds; infinite if after ``column``."""
    need = line.work[lane, column] + work
    if need > line.budget[lane, column]:
        return math.inf
    low, high = 0, column
    while low < high:
        middle = (low + high) // 2
        if line.budget[lane, middle] >= need:
            high = middle
        else:
            low = middle + 1
    begin_s = line.times[low - 1] / TICKS if low > 0 else 0.0
    return min(line.times[low] / TICKS, max(begin_s, line.offset_s[lane] + _seconds_of(fleet, line, lane, low, need)))


@compiled
def _seconds_of(fleet: Fleet, line: Timeline, lane: int, h: int, work: float) -> float:
    """The inverse of :func:`budget_of`, with the rounds and decoders of a time of the grid."""
    iterations, riders = line.rounds[lane, h] / fleet.made[lane], line.riders[lane, h]
    decoders, context = line.decoders[lane, h], line.context[lane, h]
    seconds = seconds_of(fleet, lane, work, iterations + 1, riders, decoders, context)
    if line.since[lane, h] < math.inf:
        sooner_s = seconds_of(fleet, lane, work, max(1.0, iterations), riders, decoders, context)
        if sooner_s <= (line.times[h] - line.since[lane, h]) / TICKS - line.offset_s[lane]:
            seconds = min(seconds, sooner_s)
    return seconds


@compiled
def shared(line: Timeline, usable: Bools) -> Floats:
    """What all usable lanes have left by each time; never more than at any later one."""
    total = np.zeros(line.times.shape[0])
    for lane in range(usable.shape[0]):
        if usable[lane]:
            for h in range(total.shape[0]):
                total[h] += max(0.0, line.budget[lane, h] - line.work[lane, h])
    for h in range(total.shape[0] - 2, -1, -1):
        total[h] = min(total[h], total[h + 1])
    return total


@compiled
def next_chunk(fleet: Fleet, load: Load, line: Timeline, lane: int) -> float:
    """Prompt tokens of the lane's next iteration, which ends when the first decoder's token is due."""
    room_s = max(line.slack_s[lane] - fleet.ready_s[lane], load.first_s[lane])
    most = min(fleet.max_batch[lane], tokens_in(fleet, lane, min(room_s, fleet.longest_s[lane]), load.extra_s[lane]))
    return max(1.0, most - load.decoders[lane])
