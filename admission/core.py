"""The compiled half of a plan: what is running becomes load by worker, and load becomes budgets by deadline.

:mod:`admission.budget` says in plain Python what :func:`budgets` computes; a property test holds both to the same
results. Token deadlines are whole microseconds here, so that counting them is exact.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

import numpy as np

from admission.jit import compiled
from admission.lane_arrays import Bools, Fleet, Floats, Ints, Load, batch_s, drain_s, ends_after, head_start_s, refresh
from admission.memory import BIN_TOKENS, HORIZONS
from admission.table import RunningColumns

TICKS = 1e6
"""Ticks of a second."""

_HORIZONS = np.array(HORIZONS, dtype=np.int64)


@compiled
def kv_of(table: Floats, context: float, generated: int, left: int, block: int, out: Floats) -> None:
    """Expected KV of one request at each horizon, see :class:`admission.memory.Survival`; half-full blocks count."""
    bins = table.shape[0]
    here = table[min(generated // BIN_TOKENS, bins - 1)]
    before = 0
    for i in range(_HORIZONS.shape[0]):
        horizon = min(_HORIZONS[i], left)
        if left < before:
            out[i] = 0.0
        else:
            alive = min(1.0, table[min((generated + before) // BIN_TOKENS, bins - 1)] / here)
            out[i] = alive * (context + horizon + block - 1)
        before = min(_HORIZONS[i], left + 1)


@compiled
def work_of(fleet: Fleet, lane: int, tokens: float, cached: float) -> float:
    """A prompt's work there in tokens, its attention included."""
    return (tokens - cached) + fleet.attention[lane] * (tokens * tokens - cached * cached) / 2


@compiled
def progress(rows: RunningColumns, row: int, step_s: float, now_s: float) -> int:
    """How many tokens a decoder has made since it was last seen: by the engine's pace, else as though just in time."""
    if rows.todo[row] > 0:
        return 0
    pace_s = step_s if step_s > 0 else rows.tpot_s[row]
    passed_s = now_s - rows.seen_s[row]
    if not (passed_s > 0 and pace_s < math.inf):
        return 0
    return int(min(float(rows.left[row]), math.floor(passed_s / pace_s)))


@compiled
def tally(
    rows: RunningColumns,
    lane_of: Ints,
    table_of: Ints,
    tables: Floats,
    fleet: Fleet,
    load: Load,
    now_s: float,
    lane_out: Ints,
    slack_out: Floats,
    tpot_out: Floats,
) -> int:
    """Add all that runs to the load; returns how many promised decoders it wrote to the last three (in ticks)."""
    count = 0
    kv = np.empty(_HORIZONS.shape[0])
    for row in range(rows.todo.shape[0]):
        at, source = lane_of[rows.decode[row]], lane_of[rows.prefill[row]]
        made = progress(rows, row, fleet.step_s[at], now_s) if at >= 0 else 0
        context = float(rows.context[row] + made)
        promised = rows.tpot_s[row] < math.inf
        waiting = rows.todo[row] > 0
        if waiting and source >= 0 and source != at:
            load.seqs[source] += 1
            load.all_kv[source] += context + fleet.block[source] - 1
            if promised:
                load.kv[source] += context + fleet.block[source] - 1
        if waiting and source >= 0 and not promised:
            load.loose_tokens[source] += rows.todo[row]
        if at < 0:
            continue
        table = tables[table_of[rows.tier[row]]]
        kv_of(table, context, rows.generated[row] + made, rows.left[row] - made, fleet.block[at], kv)
        load.seqs[at] += 1
        load.all_kv[at] += kv
        if promised:
            tpot_s = rows.tpot_s[row]
            load.kv[at] += kv
            load.decoders[at] += 1
            load.context[at] += context
            load.rate[at] += 1 / tpot_s
            load.tightest_s[at] = min(load.tightest_s[at], tpot_s)
            due_s = rows.due_s[row] + tpot_s if waiting else rows.start_s[row] + tpot_s * (rows.made[row] + made)
            lane_out[count] = at
            slack_out[count] = max(0.0, math.floor((due_s - now_s) * TICKS))
            tpot_out[count] = max(1.0, math.floor(tpot_s * TICKS))
            count += 1
    return count


@compiled
def line_up(
    rows: RunningColumns,
    order: Ints,
    lane_of: Ints,
    fleet: Fleet,
    load: Load,
    now_s: float,
    hop_s: float,
    elastic: bool,
) -> None:
    """Add the promised prompts that wait on workers, given in the order of their dispatch."""
    lanes = load.backlog.shape[0]
    for lane in range(lanes):
        refresh(fleet, load, lane)
    credit_s = np.full(lanes, math.inf)
    for row in order:
        lane = lane_of[rows.prefill[row]]
        if lane < 0 or not rows.tpot_s[row] < math.inf:
            continue
        work = work_of(fleet, lane, float(rows.todo[row]), 0.0)
        alone_s = drain_s(
            fleet, lane, work, load.decoders[lane], load.chunk[lane], load.full_s[lane], load.extra_s[lane]
        )
        if work > load.chunk[lane] >= 1:  # its last chunk shares a batch with the next prompt
            alone_s = min(alone_s, work / load.chunk[lane] * load.full_s[lane])
        credit_s[lane] = max(0.0, min(credit_s[lane], now_s - rows.dispatched_s[row]))
        used_s = min(credit_s[lane], alone_s)
        credit_s[lane] -= used_s
        left = max(1.0, work * (1 - used_s / alone_s)) if alone_s > 0 else work
        load.sent[lane] += left
        load.end_s[lane] = ends_after(fleet, load, lane, left)
        load.backlog[lane] += left
        due_s = rows.due_s[row] - hop_s - now_s
        target = lane_of[rows.decode[row]]
        if target >= 0 and target != lane:
            due_s -= head_start_s(target, rows.tpot_s[row], fleet, load, hop_s, elastic)
        load.slack_s[lane] = min(load.slack_s[lane], due_s - load.end_s[lane])
        load.last_due_s[lane] = max(load.last_due_s[lane], due_s)


@compiled
def count_due(slack: Floats, tpot: float, times: Floats, tokens: Floats, rounds: Floats) -> None:
    """Add the tokens due by each time, of decoders with one TPOT and sorted slacks; ``rounds`` is the most of one.

    A decoder of slack ``s = a*tpot + r`` owes ``floor(t/tpot) - a + (r <= t mod tpot)`` tokens by t >= s. Phases r of
    those that owe are kept sorted, so that each time costs one binary search.
    """
    phases = np.empty(slack.shape[0])
    active, skipped = 0, 0.0
    for h in range(times.shape[0]):
        time = times[h]
        while active < slack.shape[0] and slack[active] <= time:
            whole = math.floor(slack[active] / tpot)
            phase = slack[active] - whole * tpot
            at = active
            while at > 0 and phases[at - 1] > phase:
                phases[at] = phases[at - 1]
                at -= 1
            phases[at] = phase
            skipped += whole
            active += 1
        if active:
            whole = math.floor(time / tpot)
            tokens[h] += active * whole - skipped + _reached(phases, active, time - whole * tpot)
            rounds[h] = max(rounds[h], math.floor((time - slack[0]) / tpot) + 1)


@compiled
def _reached(phases: Floats, active: int, phase: float) -> int:
    """How many of the first ``active`` phases, which are sorted, are at most ``phase``."""
    low, high = 0, active
    while low < high:
        middle = (low + high) // 2
        if phases[middle] <= phase:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def budgets(fleet: Fleet, load: Load, lane_of: Ints, slack: Floats, tpot: Floats, times: Floats) -> Floats:
    """Prompt tokens that each lane can compute by each time (ticks, ascending), backlog not subtracted.

    Decoders are sorted by lane and TPOT. ``-inf`` where not even the decoders keep up.
    """
    lanes, count = load.decoders.shape[0], slack.shape[0]
    out = np.empty((lanes, times.shape[0]))
    tokens, rounds = np.empty(times.shape[0]), np.empty(times.shape[0])
    begin = 0
    for lane in range(lanes):
        tokens[:] = 0.0
        rounds[:] = 0.0
        while begin < count and lane_of[begin] == lane:
            end = begin
            while end < count and lane_of[end] == lane and tpot[end] == tpot[begin]:
                end += 1
            count_due(np.sort(slack[begin:end]), tpot[begin], times, tokens, rounds)
            begin = end
        for h in range(times.shape[0]):
            seconds = times[h] / TICKS - fleet.ready_s[lane]
            out[lane, h] = room(fleet, lane, seconds, max(1.0, rounds[h]), load.extra_s[lane]) - tokens[h]
    return out


@compiled
def room(fleet: Fleet, lane: int, seconds: float, rounds: float, extra_s: float) -> float:
    """Tokens of at least ``rounds`` iterations within so many seconds, and of no larger ones than allowed."""
    most = math.inf
    for piece in range(fleet.k_token.shape[1]):
        k_token, base_s = fleet.k_token[lane, piece], fleet.base[lane, piece] + extra_s
        left_s = seconds - rounds * base_s
        if k_token > 0:
            most = min(most, left_s / k_token)
        elif left_s < 0:
            most = -math.inf
        per_token_s = k_token + base_s / fleet.max_batch[lane]
        if per_token_s > 0:
            most = min(most, seconds / per_token_s)
    return most


@compiled
def shared_budget(budget: Floats, backlog: Floats, usable: Bools) -> Floats:
    """What all usable lanes have left by each time; never more than at any later one.

    Decodes due soon after a deadline are promised too, so a budget that shrinks later was never there.
    """
    total = np.zeros(budget.shape[1])
    for lane in range(budget.shape[0]):
        if usable[lane]:
            for h in range(total.shape[0]):
                total[h] += max(0.0, budget[lane, h] - backlog[lane])
    for h in range(total.shape[0] - 2, -1, -1):
        total[h] = min(total[h], total[h + 1])
    return total


__all__ = ["TICKS", "batch_s", "budgets", "kv_of", "line_up", "shared_budget", "tally", "work_of"]
