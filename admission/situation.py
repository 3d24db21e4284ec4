"""From a :class:`ClusterState` to the arrays of one plan."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from admission.core import line_up, tally
from admission.jit import compiled
from admission.lane_arrays import (
    Bools,
    Fleet,
    Floats,
    Ints,
    Load,
    drain_s,
    empty_load,
    expect_ends,
    fleet_of,
    lane_numbers,
    may_take,
)
from admission.memory import BINS, Survival
from admission.options import PlannerOptions
from admission.plan import ClusterState, Held
from admission.request_arrays import QUEUE, Queue
from admission.table import Names, table_of
from admission.timeline import TICKS, Timeline, add_prompts, grid, timeline

MAX_TICKS = 1e12
"""Deadlines further ahead are all the same."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a plan needs, as arrays; ``lanes`` are the worker ids by lane.

    ``takers`` are the lanes that prompts go to.
    A request is bound to a worker ``bind_after_s`` after it came, see :class:`admission.options.PlannerOptions`.
    """

    lanes: Sequence[str]
    bind_after_s: float
    stretch: float
    fleet: Fleet
    load: Load
    takers: Bools
    line: Timeline
    tables: Floats
    queue: Queue
    zero_load_s: Floats


class TableRows:
    """Survival tables as rows of one array; row 0 knows nothing. Built anew only when the tables change."""

    def __init__(self) -> None:
        self._survival: Survival | None = None
        self.tables: Floats = np.ones((1, BINS))
        self.rows: dict[str, int] = {}

    def update(self, survival: Survival | None) -> None:
        """Take the tables of this plan."""
        if survival is self._survival:
            return
        self._survival = survival
        self.rows = {tier: i + 1 for i, tier in enumerate(survival.tables)} if survival else {}
        known = list(survival.tables.values()) if survival else []
        self.tables = np.ones((len(known) + 1, BINS))
        if known:
            self.tables[1:] = known

    def of(self, names: Names) -> Ints:
        """Row of each numbered tier."""
        return np.array([self.rows.get(name, 0) for name in names.index] or [0], dtype=np.int64)


def situation(
    state: ClusterState, held: Sequence[Held], due_s: Floats, now_s: float, options: PlannerOptions, rows: TableRows
) -> Situation:
    """The arrays of one plan; ``due_s`` is when each that is held is due, and the load holds all that runs."""
    rows.update(state.survival if options.memory == "survival" else None)
    lanes = sorted(state.workers)
    numbers = {name: i for i, name in enumerate(lanes)}
    table = table_of(state.running)
    running = table.columns
    shared = any(one.objective is None or one.deferred for one in held) or bool(np.isinf(running["tpot_s"]).any())
    stretch = options.stretch(shared)
    fleet = fleet_of(
        (state.workers[name] for name in lanes), now_s, stretch, options.longest_batch_steps, options.draft_trust
    )
    load = empty_load(len(lanes))
    lane_of = lane_numbers(table.worker_names.index, numbers)
    lane, slack, tpot = np.empty(len(table), np.int64), np.empty(len(table)), np.empty(len(table))
    tiers = rows.of(table.tier_names)
    count = tally(running, lane_of, tiers, rows.tables, fleet, load, now_s, lane, slack, tpot)
    waiting = np.flatnonzero(running["todo"])
    order = waiting[np.argsort(running["dispatched_s"][waiting], kind="stable")]
    prompts_to = takers(fleet, options.elastic)
    bind_after_s = options.bind_after_s(int(prompts_to.sum()))
    queue = _queue(held, due_s - now_s - state.hop_s, numbers, rows, now_s, bind_after_s)
    prompts = np.empty(len(order), np.int64), np.empty(len(order)), np.empty(len(order))
    sent = line_up(
        running, order, lane_of, fleet, load, now_s, state.hop_s, options.head_start, options.elastic, *prompts
    )
    expect_ends(fleet, load, lane[:count], slack[:count] / TICKS)
    by = np.argsort(lane[:count] * 2.0**41 + tpot[:count])
    times = grid(_ticks(queue["due_s"]), np.minimum(prompts[1][:sent], MAX_TICKS))
    line = timeline(fleet, load, lane[:count][by], slack[:count][by], tpot[:count][by], state.hop_s, times)
    add_prompts(line, prompts[0][:sent], prompts[1][:sent], prompts[2][:sent])
    return Situation(
        lanes, bind_after_s, stretch, fleet, load, prompts_to, line, rows.tables, queue,
        zero_load_s(queue, fleet, options.elastic),
    )  # fmt: skip


def _ticks(due_s: Floats) -> Floats:
    """Deadlines that are ahead."""
    ahead = due_s[(due_s > 0) & np.isfinite(due_s)]
    ticks: Floats = np.minimum(np.floor(ahead * TICKS), MAX_TICKS)
    return ticks


def _queue(
    held: Sequence[Held], due_s: Floats, lanes: dict[str, int], rows: TableRows, now_s: float, bind_after_s: float
) -> Queue:
    """``due_s`` counts from now."""
    known = rows.rows
    queue = np.empty(len(held), QUEUE)
    queue["due_s"] = due_s
    queue["tokens"] = [one.need_tokens for one in held]
    queue["tpot_s"] = [math.inf if one.objective is None else one.objective.tightest_tpot_s for one in held]
    queue["generated"] = [one.generated_tokens for one in held]
    queue["left"] = [one.max_tokens for one in held]
    queue["table"] = [known.get(one.tier, 0) for one in held]
    queue["prefix"], queue["cached"] = -1, 0.0
    for i, one in enumerate(held):
        if one.prefix_worker is not None:
            queue["prefix"][i] = lanes.get(one.prefix_worker, -1)
            queue["cached"][i] = min(one.prefix_tokens, one.need_tokens - 1)
    queue["bind"] = False
    if math.isfinite(bind_after_s):
        queue["bind"] = [now_s - one.arrival_s >= bind_after_s for one in held]
    return cast(Queue, queue)


@compiled
def takers(fleet: Fleet, elastic: bool) -> Bools:
    """The lanes that prompts go to."""
    out = np.zeros(fleet.kind.shape[0], np.bool_)
    for lane in range(out.shape[0]):
        out[lane] = may_take(fleet, lane, elastic)
    return out


@compiled
def zero_load_s(queue: Queue, fleet: Fleet, elastic: bool) -> Floats:
    """Least time in which each prompt could be computed if all workers were idle."""
    out = np.full(queue.tokens.shape[0], math.inf)
    for lane in range(fleet.kind.shape[0]):
        if not may_take(fleet, lane, elastic):
            continue
        limit = fleet.max_batch[lane]
        extra_s = fleet.k_seq[lane]
        full_s = 0.0
        for piece in range(fleet.pieces[lane]):
            full_s = max(full_s, fleet.k_token[lane, piece] * limit + fleet.base[lane, piece] + extra_s)
        for i in range(out.shape[0]):
            tokens = queue.tokens[i]
            done = queue.cached[i] if queue.prefix[i] == lane else 0.0
            work = tokens - done + fleet.attention[lane] * (tokens * tokens - done * done) / 2
            out[i] = min(out[i], drain_s(fleet, lane, work, 0, limit, full_s, extra_s))
    return out
