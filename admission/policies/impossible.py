"""What no idle engine could do is refused, under any policy and whatever its sender wants on overload."""

from admission.attainable import unattainable
from admission.plan import ClusterState, Plan
from common.messages import Decision, Verdict


class RefuseImpossible:
    """Plans only refusals; the service asks it once about each request, before the policy sees it."""

    def warm_up(self) -> None:
        """Nothing to do."""

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        """Refuse who asks for a TTFT below the zero-load time."""
        refused = {}
        for held in state.held:
            reason = unattainable(held, state.workers.values())
            if reason is not None and held.objective is not None:
                ttft_ms, tpot_ms = held.objective.ttft_s * 1e3, held.objective.tpot_s * 1e3
                refused[held.id] = Decision(Verdict.REJECTED, reason, state.cycle, now_s, ttft_ms, tpot_ms)
        return Plan({}, {}, refused)
