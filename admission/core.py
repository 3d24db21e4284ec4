"""What is running becomes load by worker. Token deadlines are whole ticks, so that counting them is exact."""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

import numpy as np

from admission.jit import compiled
from admission.lane_arrays import Fleet, Floats, Ints, Load, drain_s, ends_after, head_start_s, refresh, take_link
from admission.memory import HORIZONS, bin_of
from admission.table import RunningColumns
from admission.timeline import TICKS

_HORIZONS = np.array(HORIZONS, dtype=np.int64)
_bin_of = compiled(bin_of)


@compiled
def kv_of(table: Floats, context: float, generated: int, left: int, block: int, out: Floats) -> None:
    """Expected KV of one request at each horizon, see :class:`admission.memory.Survival`; half-full blocks count."""
    here = table[_bin_of(generated)]
    before = 0
    for i in range(_HORIZONS.shape[0]):
        horizon = min(_HORIZONS[i], left)
        if left < before:
            out[i] = 0.0
        else:
            alive = min(1.0, table[_bin_of(generated + before)] / here)
            out[i] = alive * (context + horizon + block - 1)
        before = min(_HORIZONS[i], left + 1)


@compiled
def add_to(rows: Floats, row: int, values: Floats) -> None:
    """``rows[row] += values``, for which compiled code would make a copy."""
    for i in range(values.shape[0]):
        rows[row, i] += values[i]


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
        add_to(load.all_kv, at, kv)
        if promised:
            tpot_s = rows.tpot_s[row]
            add_to(load.kv, at, kv)
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
    head_start: float,
    elastic: bool,
    lane_out: Ints,
    due_out: Floats,
    work_out: Floats,
) -> int:
    """Add the promised prompts that wait on workers, given in the order of their dispatch.

    Returns how many it wrote to the last three: lane, when it must be done (in ticks) and work that is left.
    """
    count = 0
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
        load.began_s[lane] = min(load.began_s[lane], rows.dispatched_s[row] + hop_s - now_s)
        load.end_s[lane] = ends_after(fleet, load, lane, left)
        load.backlog[lane] += left
        due_s = rows.due_s[row] - hop_s - now_s
        target = lane_of[rows.decode[row]]
        if target >= 0 and target != lane:
            tokens, ends_s = float(rows.context[row]), load.end_s[lane]
            due_s -= head_start_s(target, tokens, rows.tpot_s[row], ends_s, head_start, fleet, load, hop_s, elastic)
            take_link(target, tokens, fleet, load)
        lane_out[count], due_out[count], work_out[count] = lane, due_s * TICKS, left
        count += 1
    return count
