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

from admission.lane_arrays import Ints
from admission.options import PlannerOptions
from admission.plan import ClusterState, Held, Plan
from admission.refusal import MIN_RETRY_S, Refusal, refusal
from admission.request_arrays import Placed, Rules, by_urgency, nothing_placed
from admission.settling import settle
from admission.situation import Situation, Surveyor
from common.messages import Decision, Overload, Stage, Verdict

_FEASIBLE, _PROMOTED = Refusal("feasible", None), Refusal("promoted", None)
_BEST_EFFORT, _LEFT_OVER = Refusal("best_effort", None), Refusal("left_over_capacity", None)


class Ours:
    """See the module. Keeps nothing between plans but arrays that follow from its input."""

    def __init__(self, options: PlannerOptions | None = None) -> None:
        self._options = options or PlannerOptions()
        self._surveyor = Surveyor(self._options)

    def warm_up(self) -> None:
        """Compile; the first plan would take seconds otherwise."""
        from admission.warm_up import warm_up

        warm_up(self.plan)

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        """Decide on the held requests."""
        if not state.held or not _able(state):
            return Plan({}, {}, {})
        held, asked = by_urgency(state.held)
        at = self._surveyor.situation(state, held, asked, now_s)
        placed = nothing_placed(len(held))
        settled = settle(
            asked, at.queue, at.zero_load_s, at.fleet, at.load, at.takers, at.tables, at.line, at.prompt_rate,
            at.bind_after_s, now_s, self._rules(state, at.prompt_rate), placed,
        )  # fmt: skip
        dispatch: dict[str, Decision] = {}
        defer: dict[str, Decision] = {}
        reject: dict[str, Decision] = {}
        for i in settled.denied.tolist():
            one = held[i]
            why = refusal(state, at.zero_load_s, settled.limits, i, one)
            if one.overload is Overload.REJECT:
                reject[one.id] = _decision(state, now_s, one, Verdict.REJECTED, why)
            else:
                defer[one.id] = _decision(state, now_s, one, Verdict.DEFERRED, why)
        for i, wait_s in zip(settled.impatient.tolist(), settled.waits_s.tolist(), strict=True):
            one = held[i]
            late_s = now_s + wait_s - one.arrival_s - one.patience_s
            why = Refusal(f"patience: the wait would be {wait_s:.1f} s", max(MIN_RETRY_S, late_s))
            defer.pop(one.id, None)
            reject[one.id] = _decision(state, now_s, one, Verdict.REJECTED, why)
        for i, where in zip(settled.promised.tolist(), _places(at, placed, settled.promised), strict=True):
            one = held[i]
            why = _PROMOTED if one.deferred else _FEASIBLE
            dispatch[one.id] = _decision(state, now_s, one, Verdict.ADMITTED, why, where)
        for i, where in zip(settled.loose.tolist(), _places(at, placed, settled.loose), strict=True):
            one = held[i]
            defer.pop(one.id, None)
            why = _BEST_EFFORT if one.objective is None else _LEFT_OVER
            dispatch[one.id] = _decision(state, now_s, one, Verdict.DEFERRED, why, (*where[:2], None, None))
        wake_s = settled.wake_s
        again_s = now_s + max(self._options.lookahead_s, wake_s) if math.isfinite(wake_s) else None
        return Plan(dispatch, defer, reject, again_s)

    def _rules(self, state: ClusterState, prompt_rate: float) -> Rules:
        options = self._options
        return Rules(
            soon_s=state.hop_s + options.lookahead_s,
            hop_s=state.hop_s,
            decode_load=options.decode_load,
            pack=options.decode_packing,
            elastic=options.elastic,
            loose_share=options.best_effort_share,
            pack_s=options.pack_s,
            hand_off=options.hand_off,
            stray=options.stray,
            head_start=options.head_start,
            spoil_s=options.spoil_s * min(1.0, state.arriving / prompt_rate),
            optimal=options.select == "dp",
            later_round=options.later_round,
            deferral=options.deferral,
            offline_lag_s=options.offline_lag_s,
            owed_s=options.best_effort_wait_s,
            owed_ttft=options.best_effort_wait_ttft,
        )


def _able(state: ClusterState) -> bool:
    """Whether there is a worker for each stage."""
    workers = state.workers.values()
    return all(any(stage in worker.may for worker in workers) for stage in Stage)


_Place = tuple[str | None, str | None, float | None, float | None]
"""Who prefills and decodes; without the margin, when the prompt ends (seconds from now) and at what TPOT (ms)."""

_NOWHERE: _Place = (None, None, None, None)


def _places(at: Situation, placed: Placed, rows: Ints) -> Iterator[_Place]:
    """Of requests that are sent."""
    if not len(rows):
        return
    decode = placed["decode"][rows].tolist()
    tpot_ms = ((at.load["first_s"] - at.fleet["k_seq"]) * (1e3 / at.stretch)).tolist()  # counts with one more
    prefill, ends_s = placed["prefill"][rows].tolist(), (placed["finish_s"][rows] / at.stretch).tolist()
    lanes = at.lanes
    for first, then, end_s in zip(prefill, decode, ends_s, strict=True):
        yield lanes[first], lanes[then], end_s, tpot_ms[then]


def _decision(
    state: ClusterState, now_s: float, one: Held, verdict: Verdict, why: Refusal, where: _Place = _NOWHERE
) -> Decision:
    objective = one.objective
    prefill, decode, end_s, tpot_ms = where
    ttft_ms = None if end_s is None else (now_s + state.hop_s + end_s - one.arrival_s) * 1e3
    thinking_s = None if objective is None else objective.thinking_tpot_s
    return Decision(
        verdict=verdict,
        reason=why.reason,
        cycle=state.cycle,
        decided_s=now_s,
        ttft_ms=None if objective is None else objective.ttft_s * 1e3,
        tpot_ms=None if objective is None else objective.tpot_s * 1e3,
        thinking_tpot_ms=None if thinking_s is None else thinking_s * 1e3,
        predicted_ttft_ms=ttft_ms,
        predicted_tpot_ms=tpot_ms,
        prefill_worker=prefill,
        decode_worker=decode,
        retry_after_s=why.retry_after_s,
    )
