"""From a :class:`ClusterState` to the arrays of one plan.

What is compiled is one call: a call of compiled code or of numpy costs some microseconds, whatever it does.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np

from admission.core import line_up, tally
from admission.fleets import Fleets
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
    lane_numbers,
    may_take,
)
from admission.memory import BINS, Survival
from admission.options import HOLD_FROM, PlannerOptions
from admission.plan import ClusterState, Held
from admission.request_arrays import QUEUE, HeldRows, Queue
from admission.table import Names, RunningColumns, table_of
from admission.timeline import TICKS, Timeline, add_prompts, grid, timeline

MAX_TICKS = 1e12
"""Deadlines further ahead are all the same."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a plan needs, as arrays; ``lanes`` are the worker ids by lane.

    ``takers`` are the lanes that prompts go to, ``prompt_rate`` the prompt tokens that they compute in a second if
    nothing decodes, and ``zero_load_s`` how long each prompt would take if all were idle.
    A request is bound to a worker ``bind_after_s`` after it came, see :class:`admission.options.PlannerOptions`.
    """

    lanes: Sequence[str]
    stretch: float
    fleet: Fleet
    load: Load
    tables: Floats
    queue: Queue
    takers: Bools
    bind_after_s: float
    prompt_rate: float
    line: Timeline
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


class Surveyor:
    """Makes the situations of plans. Keeps nothing between them but arrays that follow from their input."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self._rows = TableRows()
        self._fleets = Fleets(options.longest_batch_steps, options.draft_trust)

    def situation(self, state: ClusterState, held: Sequence[Held], asked: HeldRows, now_s: float) -> Situation:
        """The arrays of one plan; ``asked`` are the rows of ``held``, and the load holds all that runs."""
        options, rows = self._options, self._rows
        rows.update(state.survival if options.memory == "survival" else None)
        lanes = sorted(state.workers)
        numbers = {name: i for i, name in enumerate(lanes)}
        table = table_of(state.running)
        stretch = options.stretch(is_shared(asked, table.columns))
        fleet = self._fleets.of([state.workers[name] for name in lanes], now_s, stretch)
        load, queue = empty_load(len(lanes)), np.empty(len(held), QUEUE)
        queue["table"] = [rows.rows.get(one.tier, 0) for one in held]
        queue["prefix"] = [-1 if one.prefix_worker is None else numbers.get(one.prefix_worker, -1) for one in held]
        found = survey(
            table.columns, lane_numbers(table.worker_names.index, numbers), rows.of(table.tier_names), rows.tables,
            fleet, load, asked, cast(Queue, queue), now_s, state.hop_s, options.head_start, options.elastic,
            options.bind_after_s(1), options.bind_after_s(HOLD_FROM),
        )  # fmt: skip
        return Situation(lanes, stretch, fleet, load, rows.tables, cast(Queue, queue), *found)


class Surveyed(NamedTuple):
    """What :func:`survey` finds; see :class:`Situation`."""

    takers: Bools
    bind_after_s: float
    prompt_rate: float
    line: Timeline
    zero_load_s: Floats


@compiled
def is_shared(asked: HeldRows, running: RunningColumns) -> bool:
    """Whether there is work without a promise."""
    for i in range(asked.offline.shape[0]):
        if asked.offline[i] > 0 or asked.deferred[i] > 0:
            return True
    for row in range(running.tpot_s.shape[0]):  # noqa: SIM110 (numba compiles no generator)
        if running.tpot_s[row] == math.inf:
            return True
    return False


@compiled
def survey(
    running: RunningColumns, lane_of: Ints, tiers: Ints, tables: Floats, fleet: Fleet, load: Load, asked: HeldRows,
    queue: Queue, now_s: float, hop_s: float, head_start: float, elastic: bool, bind_few_s: float, bind_many_s: float,
) -> Surveyed:  # fmt: skip
    """Fill in the load and the queue, whose ``table`` and ``prefix`` are known, and find out the rest."""
    count = running.todo.shape[0]
    lane, slack, tpot = np.empty(count, np.int64), np.empty(count), np.empty(count)
    decoding = tally(running, lane_of, tiers, tables, fleet, load, now_s, lane, slack, tpot)
    lane, slack, tpot = lane[:decoding], slack[:decoding], tpot[:decoding]
    prompts_to = takers(fleet, elastic)
    bind_after_s = bind_many_s if prompts_to.sum() >= HOLD_FROM else bind_few_s
    ask(asked, now_s, hop_s, bind_after_s, queue)
    order = _as_sent(running)
    on, due, work = np.empty(order.shape[0], np.int64), np.empty(order.shape[0]), np.empty(order.shape[0])
    sent = line_up(running, order, lane_of, fleet, load, now_s, hop_s, head_start, elastic, on, due, work)
    on, due, work = on[:sent], due[:sent], work[:sent]
    expect_ends(fleet, load, lane, slack / TICKS)
    line = timeline(fleet, load, lane, slack, tpot, hop_s, grid(_ticks(queue.due_s), np.minimum(due, MAX_TICKS)))
    add_prompts(line, on, due, work)
    prompt_rate = 0.0
    for at in range(prompts_to.shape[0]):
        if prompts_to[at]:
            prompt_rate += fleet.max_batch[at] / fleet.longest_s[at]
    return Surveyed(prompts_to, bind_after_s, prompt_rate, line, zero_load_s(queue, fleet, elastic))


@compiled
def _as_sent(running: RunningColumns) -> Ints:
    """Rows of the prompts that wait on workers, in the order of their dispatch."""
    waiting, dispatched_s = np.empty(running.todo.shape[0], np.int64), np.empty(running.todo.shape[0])
    count = 0
    for row in range(waiting.shape[0]):
        if running.todo[row] != 0:
            waiting[count], dispatched_s[count] = row, running.dispatched_s[row]
            count += 1
    return waiting[np.argsort(dispatched_s[:count], kind="mergesort")]


@compiled
def ask(asked: HeldRows, now_s: float, hop_s: float, bind_after_s: float, queue: Queue) -> None:
    """What is asked for becomes the queue, with times from now."""
    for i in range(asked.due_s.shape[0]):
        queue.due_s[i] = asked.due_s[i] - now_s - hop_s
        queue.tpot_s[i] = asked.tpot_s[i]
        queue.tokens[i] = asked.tokens[i]
        queue.cached[i] = asked.cached[i]
        queue.generated[i] = int(asked.generated[i])
        queue.left[i] = int(asked.left[i])
        queue.bind[i] = now_s - asked.arrival_s[i] >= bind_after_s


@compiled
def _ticks(due_s: Floats) -> Floats:
    """Deadlines that are ahead."""
    out = np.empty(due_s.shape[0])
    count = 0
    for due in due_s:
        if 0 < due < math.inf:
            out[count] = min(math.floor(due * TICKS), MAX_TICKS)
            count += 1
    return out[:count]


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
