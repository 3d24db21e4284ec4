"""The product's policy: hold centrally, promise the most valuable set, bind late, defer before anything worse.

1. What runs becomes load by worker (:mod:`admission.core`), and load budgets by deadline (:mod:`admission.timeline`).
2. Of the held requests that can still be in time, the most valuable feasible set wins (:mod:`admission.late_jobs`).
3. Winners, then losers, are placed where their prompts end first (:mod:`admission.placement`). What fits is promised:
   sent when its worker is about to need it, else held on. A promise is announced when it is sent, and then never
   displaced; until then a better one may still take its place.
4. What did not fit is deferred: it stays held and runs in left-over capacity (:mod:`admission.leftover`), unless its
   sender asked to be refused or its patience would run out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from admission.contest import contest
from admission.lane_arrays import Ints
from admission.late_jobs import greedy, select
from admission.leftover import fill
from admission.options import PlannerOptions
from admission.placement import promise
from admission.plan import ClusterState, Held, Plan
from admission.refusal import MIN_RETRY_S, Refusal, limits_of, refusal
from admission.request_arrays import HOLD, SEND, WAIT, Placed, Rules, nothing_placed
from admission.situation import Situation, TableRows, situation
from common.messages import Decision, Overload, Stage, Verdict

_FEASIBLE, _PROMOTED = Refusal("feasible", None), Refusal("promoted", None)
_BEST_EFFORT, _LEFT_OVER = Refusal("best_effort", None), Refusal("left_over_capacity", None)


@dataclass(slots=True)
class _Cycle:
    """One plan in the making; ``held`` in order of deadline."""

    state: ClusterState
    now_s: float
    held: list[Held]
    at: Situation
    prompt_rate: float
    placed: Placed
    dispatch: dict[str, Decision] = field(default_factory=dict)
    defer: dict[str, Decision] = field(default_factory=dict)
    reject: dict[str, Decision] = field(default_factory=dict)


class Ours:
    """See the module. Keeps nothing between plans but arrays that follow from its input."""

    def __init__(self, options: PlannerOptions | None = None) -> None:
        self._options = options or PlannerOptions()
        self._rows = TableRows()

    def warm_up(self) -> None:
        """Compile; the first plan would take seconds otherwise."""
        from admission.warm_up import warm_up

        warm_up(self.plan)

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        """Decide on the held requests."""
        if not state.held or not _able(state):
            return Plan({}, {}, {})
        urgent = sorted((one.due_s, one.arrival_s, one.id, one) for one in state.held)
        held = [one for _, _, _, one in urgent]
        at = situation(state, held, np.array([due_s for due_s, _, _, _ in urgent]), now_s, self._options, self._rows)
        cycle = _Cycle(state, now_s, held, at, _prompt_rate(at), nothing_placed(len(held)))
        rules = self._rules(cycle)
        hopeful = self._hopeful(cycle)
        self._promise(cycle, hopeful, rules)
        waiting = self._refuse(cycle, self._by_age(cycle))
        self._fill(cycle, waiting, hopeful, rules)
        self._lose_patience(cycle, waiting)
        return self._plan(cycle, waiting)

    def _rules(self, cycle: _Cycle) -> Rules:
        options = self._options
        return Rules(
            soon_s=cycle.state.hop_s + options.lookahead_s,
            hop_s=cycle.state.hop_s,
            decode_load=options.decode_load,
            pack=options.decode_packing,
            elastic=options.elastic,
            loose_share=options.best_effort_share,
            pack_s=options.pack_s,
            hand_off=options.hand_off,
            stray=options.stray,
            head_start=options.head_start,
            spoil_s=options.spoil_s * min(1.0, cycle.state.arriving / cycle.prompt_rate),
        )

    def _hopeful(self, cycle: _Cycle) -> Ints:
        """Who could be in time if all workers were idle; the others are relegated."""
        queue = cycle.at.queue
        possible = cycle.at.zero_load_s <= queue["due_s"]
        possible &= np.isfinite(queue["tpot_s"])
        for i, one in enumerate(cycle.held):
            if one.missed_round or (one.deferred and not self._options.deferral):
                possible[i] = False
        return np.flatnonzero(possible)

    def _promise(self, cycle: _Cycle, hopeful: Ints, rules: Rules) -> None:
        at, queue = cycle.at, cycle.at.queue
        if not len(hopeful):
            return
        work, kv, budget, kv_limit = contest(
            hopeful, queue, at.fleet, at.load, at.takers, at.line, at.tables, rules.elastic
        )
        if self._options.select == "dp":
            later, held = self._options.later_round, cycle.held
            value = np.array([held[i].value * (1 + later * held[i].round) for i in hopeful.tolist()])
            wins = select(work, kv, value, budget, kv_limit)
        else:
            wins = greedy(work, kv, budget, kv_limit)
        for order in (hopeful[wins], hopeful[~wins]):
            promise(order, queue, at.fleet, at.load, at.tables, at.line, rules, cycle.placed)

    def _fill(self, cycle: _Cycle, waiting: list[int], hopeful: Ints, rules: Rules) -> None:
        """Left-over capacity, and its guaranteed share for who has waited long and can't be promised any more."""
        may_win = set(hopeful.tolist())
        owed: list[int] = []
        rest: list[int] = []
        losing: list[int] = []
        for i in waiting:
            group = losing if i in may_win else owed if self._is_owed(cycle.held[i], cycle.now_s) else rest
            group.append(i)
        at = cycle.at
        for group, share in ((owed, rules.loose_share), (rest + losing, 0.0)):
            if group:
                order = np.array(group, dtype=np.int64)
                fill(order, at.queue, at.fleet, at.load, at.tables, rules._replace(loose_share=share), cycle.placed)

    def _is_owed(self, one: Held, now_s: float) -> bool:
        """Whether it has waited for so long that it may share a busy worker."""
        wait_s = self._options.best_effort_wait_s
        if one.objective is not None:
            wait_s = min(wait_s, self._options.best_effort_wait_ttft * one.objective.ttft_s)
        return one.arrival_s + wait_s <= now_s

    def _by_age(self, cycle: _Cycle) -> list[int]:
        """What is not promised, the longest waiting first; offline work a while after deferred work of its age."""
        lag_s = self._options.offline_lag_s
        waiting = np.flatnonzero(cycle.placed["action"] == WAIT).tolist()
        held = cycle.held
        return sorted(waiting, key=lambda i: held[i].arrival_s + (lag_s if held[i].objective is None else 0.0))

    def _refuse(self, cycle: _Cycle, waiting: list[int]) -> list[int]:
        """Say why an SLO is not promised, once; returns the requests whose senders did not want to be refused."""
        held, at = cycle.held, cycle.at
        wanted = [
            i
            for i in waiting
            if held[i].objective is not None and (held[i].overload is Overload.REJECT or not held[i].deferred)
        ]
        if not wanted:
            return waiting
        limits = limits_of(np.array(wanted, dtype=np.int64), at.queue, at.fleet, at.load)
        for i in wanted:
            one = held[i]
            why = refusal(cycle.state, at, limits, i, one)
            if one.overload is Overload.REJECT:
                cycle.reject[one.id] = _decision(cycle, one, Verdict.REJECTED, why)
            else:
                cycle.defer[one.id] = _decision(cycle, one, Verdict.DEFERRED, why)
        return [i for i in waiting if held[i].id not in cycle.reject] if cycle.reject else waiting

    def _lose_patience(self, cycle: _Cycle, waiting: list[int]) -> None:
        """Refuse what would wait longer than its sender wants to even if nothing else came and all decoders left."""
        load, usable, rate = cycle.at.load, cycle.at.takers, cycle.prompt_rate
        ahead = float(load["backlog"][usable].sum() + load["loose_tokens"][usable].sum())
        actions, tokens = cycle.placed["action"].tolist(), cycle.at.queue["tokens"].tolist()
        for i in waiting:
            if actions[i] != WAIT:
                continue
            one = cycle.held[i]
            wait_s = ahead / rate if rate > 0 else 0.0
            if cycle.now_s + wait_s > one.arrival_s + one.patience_s:
                late_s = cycle.now_s + wait_s - one.arrival_s - one.patience_s
                why = Refusal(f"patience: the wait would be {wait_s:.1f} s", max(MIN_RETRY_S, late_s))
                cycle.defer.pop(one.id, None)
                cycle.reject[one.id] = _decision(cycle, one, Verdict.REJECTED, why)
                cycle.placed["action"][i] = HOLD
            else:
                ahead += tokens[i]

    def _plan(self, cycle: _Cycle, waiting: list[int]) -> Plan:
        placed, held, dispatch = cycle.placed, cycle.held, cycle.dispatch
        sent = placed["action"] == SEND
        promised = np.flatnonzero(sent & np.isfinite(placed["finish_s"]))
        for i, where in zip(promised.tolist(), _places(cycle, promised), strict=True):
            one = held[i]
            why = _PROMOTED if one.deferred else _FEASIBLE
            dispatch[one.id] = _decision(cycle, one, Verdict.ADMITTED, why, where)
        loose = np.array([i for i in waiting if sent[i]], dtype=np.int64)
        for i, where in zip(loose.tolist(), _places(cycle, loose), strict=True):
            one = held[i]
            cycle.defer.pop(one.id, None)
            why = _BEST_EFFORT if one.objective is None else _LEFT_OVER
            dispatch[one.id] = _decision(cycle, one, Verdict.DEFERRED, why, (*where[:2], None, None))
        return Plan(dispatch, cycle.defer, cycle.reject, self._wake_s(cycle))

    def _wake_s(self, cycle: _Cycle) -> float | None:
        """When a held prompt's worker is about to need it, or a worker has room for best effort."""
        placed, load, options = cycle.placed, cycle.at.load, self._options
        soon_s = cycle.state.hop_s + options.lookahead_s
        starts_s = placed["start_s"][(placed["action"] == HOLD) & np.isfinite(placed["finish_s"])]
        wake_s = float(starts_s.min()) - soon_s if len(starts_s) else math.inf
        if (placed["action"] == WAIT).any():
            ends_s = load["end_s"][cycle.at.takers]
            wake_s = min(wake_s, float(ends_s.min()))
        bind_after_s = cycle.at.bind_after_s
        if math.isfinite(bind_after_s) and len(starts_s):
            oldest_s = min(cycle.held[i].arrival_s for i in np.flatnonzero(placed["action"] == HOLD))
            wake_s = min(wake_s, oldest_s + bind_after_s - cycle.now_s)
        return cycle.now_s + max(options.lookahead_s, wake_s) if math.isfinite(wake_s) else None


def _able(state: ClusterState) -> bool:
    """Whether there is a worker for each stage."""
    workers = state.workers.values()
    return all(any(stage in worker.may for worker in workers) for stage in Stage)


def _prompt_rate(at: Situation) -> float:
    """Prompt tokens a second of all workers together if nothing decoded."""
    return float((at.fleet["max_batch"] / at.fleet["longest_s"])[at.takers].sum())


_Place = tuple[str | None, str | None, float | None, float | None]
"""Who prefills and decodes; without the margin, when the prompt ends (seconds from now) and at what TPOT (ms)."""

_NOWHERE: _Place = (None, None, None, None)


def _places(cycle: _Cycle, rows: Ints) -> Iterator[_Place]:
    """Of requests that are sent."""
    at, placed = cycle.at, cycle.placed
    decode = placed["decode"][rows].tolist()
    tpot_ms = ((at.load["first_s"] - at.fleet["k_seq"]) * (1e3 / at.stretch)).tolist()  # counts with one more
    prefill, ends_s = placed["prefill"][rows].tolist(), (placed["finish_s"][rows] / at.stretch).tolist()
    lanes = at.lanes
    for first, then, end_s in zip(prefill, decode, ends_s, strict=True):
        yield lanes[first], lanes[then], end_s, tpot_ms[then]


def _decision(cycle: _Cycle, one: Held, verdict: Verdict, why: Refusal, where: _Place = _NOWHERE) -> Decision:
    objective, state = one.objective, cycle.state
    prefill, decode, end_s, tpot_ms = where
    ttft_ms = None if end_s is None else (cycle.now_s + state.hop_s + end_s - one.arrival_s) * 1e3
    thinking_s = None if objective is None else objective.thinking_tpot_s
    return Decision(
        verdict=verdict,
        reason=why.reason,
        cycle=state.cycle,
        decided_s=cycle.now_s,
        ttft_ms=None if objective is None else objective.ttft_s * 1e3,
        tpot_ms=None if objective is None else objective.tpot_s * 1e3,
        thinking_tpot_ms=None if thinking_s is None else thinking_s * 1e3,
        predicted_ttft_ms=ttft_ms,
        predicted_tpot_ms=tpot_ms,
        prefill_worker=prefill,
        decode_worker=decode,
        retry_after_s=why.retry_after_s,
    )
