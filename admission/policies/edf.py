"""Earliest deadline first: promise what is feasible on the latency model, defer or reject the rest.

Requests are walked in order of their prefill deadline. One that meets TTFT on the worker that would finish it
first, and TPOT on a decode worker that keeps everyone else's, is admitted. It is dispatched when its worker is
about to have room, and stays held until then: what is not bound can still be bound better. The others are
rejected if their sender asked for that, and else served in arrival order where nothing promised waits.
"""

import math
from dataclasses import dataclass, field

from admission.lanes import Lane, lanes_of, pool
from admission.plan import ClusterState, Held, Plan
from common.messages import Decision, Overload, Stage, Verdict
from common.slo import Objective

LOOKAHEAD_S = 0.005
"""A worker gets its next prompt this long before it runs dry."""

MIN_RETRY_S = 0.1


@dataclass(slots=True)
class _Cycle:
    """One plan in the making."""

    state: ClusterState
    now_s: float
    lanes: dict[str, Lane]
    dispatch: dict[str, Decision] = field(default_factory=dict)
    defer: dict[str, Decision] = field(default_factory=dict)
    reject: dict[str, Decision] = field(default_factory=dict)
    wake_s: float = math.inf

    def plan(self) -> Plan:
        return Plan(self.dispatch, self.defer, self.reject, None if math.isinf(self.wake_s) else self.wake_s)


@dataclass(frozen=True, slots=True)
class _Placement:
    prefill: Lane
    decode: Lane
    start_s: float
    finish_s: float


class EarliestDeadlineFirst:
    """See the module; holds no state between plans."""

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        """Decide on the held requests; in O(requests * workers)."""
        cycle = _Cycle(state, now_s, lanes_of(state, now_s))
        if not pool(cycle.lanes.values(), Stage.PREFILL) or not pool(cycle.lanes.values(), Stage.DECODE):
            return cycle.plan()
        unpromised = []
        for held in sorted(state.held, key=_urgency):
            if held.objective is None or not self._promise(cycle, held, held.objective):
                unpromised.append(held)
        for held in sorted(unpromised, key=lambda held: (held.arrival_s, held.id)):
            self._leave_over(cycle, held)
        return cycle.plan()

    def _promise(self, cycle: _Cycle, held: Held, objective: Objective) -> bool:
        """Admit if feasible. True when nothing is left to be decided for the request."""
        tpot_s = objective.tightest_tpot_s
        placement = _place(cycle, held, tpot_s)
        late_s = _lateness(cycle, held, placement)
        if placement is not None and late_s <= 0:
            self._admit(cycle, held, objective, placement)
            return True
        reason = _refusal(cycle, held, objective, tpot_s, placement)
        if held.overload is Overload.REJECT:
            retry_s = None
            if not reason.startswith("slo_unattainable"):  # waiting would help
                retry_s = max(MIN_RETRY_S, late_s if math.isfinite(late_s) else _next_finish_s(cycle))
            cycle.reject[held.id] = _decision(cycle, Verdict.REJECTED, reason, objective, retry_after_s=retry_s)
            return True
        if not held.deferred:
            cycle.defer[held.id] = _decision(cycle, Verdict.DEFERRED, reason, objective)
        return False

    def _admit(self, cycle: _Cycle, held: Held, objective: Objective, placement: _Placement) -> None:
        lane = placement.prefill
        fits_next_batch = lane.sent_tokens + held.need_tokens <= lane.worker.max_batch_tokens
        starts_soon = placement.start_s <= cycle.now_s + cycle.state.hop_s + LOOKAHEAD_S
        _commit(placement, held, objective.tightest_tpot_s, cycle.now_s)
        if not (starts_soon or fits_next_batch):
            cycle.wake_s = min(cycle.wake_s, placement.start_s - cycle.state.hop_s - LOOKAHEAD_S)
            return
        lane.sent_tokens += held.need_tokens
        cycle.dispatch[held.id] = _decision(
            cycle, Verdict.ADMITTED, "promoted" if held.deferred else "feasible", objective, placement, held
        )

    def _leave_over(self, cycle: _Cycle, held: Held) -> None:
        """Serve without a promise where no promised prompt waits and no promised decoder suffers."""
        placement = _place(cycle, held, math.inf)
        if placement is None or placement.prefill.backlog_tokens:
            cycle.wake_s = min(cycle.wake_s, max(_next_finish_s(cycle), LOOKAHEAD_S) + cycle.now_s)
            return
        _commit(placement, held, math.inf, cycle.now_s)
        reason = "best_effort" if held.objective is None else "left_over_capacity"
        cycle.defer.pop(held.id, None)
        cycle.dispatch[held.id] = _decision(cycle, Verdict.DEFERRED, reason, held.objective, placement, held)


def _urgency(held: Held) -> tuple[float, float, str]:
    return held.due_s, held.arrival_s, held.id


def _place(cycle: _Cycle, held: Held, tpot_s: float) -> _Placement | None:
    """The prefill worker that would finish first, and the least loaded decode worker that takes its KV."""
    best: _Placement | None = None
    for lane in pool(cycle.lanes.values(), Stage.PREFILL):
        start_s = cycle.now_s + lane.backlog_s
        finish_s = start_s + lane.prefill_s(held.need_tokens)
        decode = _decode_lane(cycle, lane, held, tpot_s)
        if decode is not None and (best is None or finish_s < best.finish_s):
            best = _Placement(lane, decode, start_s, finish_s)
    return best


def _decode_lane(cycle: _Cycle, prefill: Lane, held: Held, tpot_s: float) -> Lane | None:
    reachable = [
        lane
        for lane in pool(cycle.lanes.values(), Stage.DECODE)
        if lane is prefill or lane.worker.fingerprint == prefill.worker.fingerprint
    ]
    if not reachable and Stage.DECODE in prefill.worker.may:
        reachable = [prefill]
    fitting = [lane for lane in reachable if lane.fits(held, tpot_s)]
    return min(fitting, key=lambda lane: (lane.step_s(1, held.need_tokens), lane.worker.id), default=None)


def _lateness(cycle: _Cycle, held: Held, placement: _Placement | None) -> float:
    """How much too late the next token would come, in seconds; infinite if no decode worker fits."""
    if placement is None:
        return math.inf
    return placement.finish_s + cycle.state.hop_s - held.due_s


def _refusal(cycle: _Cycle, held: Held, objective: Objective, tpot_s: float, placement: _Placement | None) -> str:
    """Why the SLO can't be promised, and what could be."""
    lanes = cycle.lanes.values()
    best_ttft_s = min(
        lane.worker.latency.prefill_seconds(held.need_tokens, lane.worker.max_batch_tokens)
        for lane in pool(lanes, Stage.PREFILL)
    )
    best_tpot_s = min(lane.worker.latency.decode_seconds(1, held.need_tokens) for lane in pool(lanes, Stage.DECODE))
    if held.generated_tokens == 0 and objective.ttft_s < best_ttft_s:
        return f"slo_unattainable: TTFT is at least {(best_ttft_s + cycle.state.hop_s) * 1e3:.1f} ms for this prompt"
    if tpot_s < best_tpot_s:
        return f"slo_unattainable: TPOT is at least {best_tpot_s * 1e3:.1f} ms"
    if placement is None:
        return "decode_capacity"
    return "prefill_capacity"


def _next_finish_s(cycle: _Cycle) -> float:
    """Seconds until the first worker is through its prefill backlog."""
    return min(lane.backlog_s for lane in pool(cycle.lanes.values(), Stage.PREFILL))


def _commit(placement: _Placement, held: Held, tpot_s: float, now_s: float) -> None:
    placement.prefill.add_prefill(held.need_tokens, placement.finish_s - max(placement.start_s, now_s))
    placement.decode.add_decoder(held.need_tokens, held.need_tokens + held.max_tokens, tpot_s)


def _decision(
    cycle: _Cycle,
    verdict: Verdict,
    reason: str,
    objective: Objective | None,
    placement: _Placement | None = None,
    held: Held | None = None,
    retry_after_s: float | None = None,
) -> Decision:
    thinking_s = objective.thinking_tpot_s if objective else None
    predicted_ttft_ms = predicted_tpot_ms = None
    if placement is not None and held is not None:
        predicted_ttft_ms = (placement.finish_s + cycle.state.hop_s - held.arrival_s) * 1e3
        predicted_tpot_ms = placement.decode.step_s() * 1e3
    return Decision(
        verdict=verdict,
        reason=reason,
        cycle=cycle.state.cycle,
        decided_s=cycle.now_s,
        ttft_ms=objective.ttft_s * 1e3 if objective else None,
        tpot_ms=objective.tpot_s * 1e3 if objective else None,
        thinking_tpot_ms=None if thinking_s is None else thinking_s * 1e3,
        predicted_ttft_ms=predicted_ttft_ms,
        predicted_tpot_ms=predicted_tpot_ms,
        prefill_worker=placement.prefill.worker.id if placement else None,
        decode_worker=placement.decode.worker.id if placement else None,
        retry_after_s=retry_after_s,
    )
