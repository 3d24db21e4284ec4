"""First come, first served: what is done without a planner, and what is left when a planner fails.

Nothing is promised, held or refused; each request goes to the worker with the least prefill work.
"""

from admission.lanes import Lane, lanes_of, pool
from admission.plan import ClusterState, Held, Plan
from common.messages import Decision, Stage, Verdict


class FirstComeFirstServed:
    """See the module; holds no state between plans."""

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        """Dispatch everything in arrival order, as long as there is a worker for each stage."""
        lanes = lanes_of(state, now_s)
        dispatch: dict[str, Decision] = {}
        for held in sorted(state.held, key=lambda held: (held.arrival_s, held.id)):
            prefill = min(
                pool(lanes.values(), Stage.PREFILL),
                key=lambda lane: (lane.backlog_tokens, lane.worker.id),
                default=None,
            )
            decode = None if prefill is None else _decode_lane(lanes, prefill)
            if prefill is None or decode is None:
                break
            prefill.add_prefill(held.need_tokens, 0.0)
            decode.add_decoder(held.need_tokens, held.need_tokens + held.max_tokens, float("inf"))
            dispatch[held.id] = _decision(state, held, prefill, decode, now_s)
        return Plan(dispatch, {}, {})


def _decode_lane(lanes: dict[str, Lane], prefill: Lane) -> Lane | None:
    reachable = [
        lane
        for lane in pool(lanes.values(), Stage.DECODE)
        if lane is prefill or lane.worker.fingerprint == prefill.worker.fingerprint
    ]
    if not reachable and Stage.DECODE in prefill.worker.may:
        return prefill
    return min(reachable, key=lambda lane: (lane.decoders, lane.worker.id), default=None)


def _decision(state: ClusterState, held: Held, prefill: Lane, decode: Lane, now_s: float) -> Decision:
    objective = held.objective
    return Decision(
        verdict=Verdict.DEFERRED,
        reason="unplanned",
        cycle=state.cycle,
        decided_s=now_s,
        ttft_ms=objective.ttft_s * 1e3 if objective else None,
        tpot_ms=objective.tpot_s * 1e3 if objective else None,
        thinking_tpot_ms=objective.thinking_tpot_s * 1e3 if objective and objective.thinking_tpot_s else None,
        prefill_worker=prefill.worker.id,
        decode_worker=decode.worker.id,
    )
