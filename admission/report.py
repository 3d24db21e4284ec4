"""What the planner tells operators: metrics, spans and log lines. Nothing here changes a decision."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.trace import SpanKind

from admission.plan import ClusterState, Plan
from admission.window import Waiting
from common.bus.interface import DeadLetter, QueueDepth
from common.messages import Decision, Stage, Verdict, WorkerState
from common.telemetry import metrics, names, tracing
from common.telemetry.logs import get_logger

log = get_logger(__name__)


class Report:
    """One per admission process."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._plan_carrier: Mapping[str, str] = {}

    def leading(self, leading: bool) -> None:
        """Leadership was won or lost."""
        metrics.LEADER.set(leading)

    def fleet(self, states: Mapping[str, WorkerState]) -> None:
        """Live workers by the stage that they prefer."""
        count = Counter(state.prefers for state in states.values())
        for stage in Stage:
            metrics.WORKERS.labels(stage.value).set(count[stage])

    def depths(self, depths: Mapping[str, QueueDepth], held: int, now_s: float) -> None:
        """Queue depth and oldest wait by tier."""
        metrics.HELD.set(held)
        for tier, depth in depths.items():
            oldest_s = 0.0 if depth.oldest_arrival_s is None else max(0.0, now_s - depth.oldest_arrival_s)
            metrics.QUEUE_DEPTH.labels(tier).set(depth.waiting)
            metrics.OLDEST_WAIT_S.labels(tier).set(oldest_s)

    def dead_letters(self, letters: Iterable[DeadLetter]) -> None:
        """What was given up lately."""
        metrics.DEAD_LETTERS.clear()
        for reason, count in Counter(letter.reason for letter in letters).items():
            metrics.DEAD_LETTERS.labels(reason).set(count)

    def died(self, stage: Stage | None, requeued: int) -> None:
        """A worker fell silent and its requests were put back."""
        metrics.WORKER_DEATHS.labels(stage.value if stage else "unknown").inc()
        metrics.REQUEUES.labels("worker_died").inc(requeued)

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Times one plan."""
        started_s = time.perf_counter()
        yield
        metrics.PLAN_S.labels(self._policy).observe(time.perf_counter() - started_s)

    def planned(self, state: ClusterState, plan: Plan, started_s: float, ended_s: float) -> None:
        """Remember this cycle's span for the requests that it decided on; empty cycles have none."""
        if not (plan.dispatch or plan.defer or plan.reject):
            return
        self._plan_carrier = tracing.record_span(
            names.PLAN,
            None,
            started_s,
            ended_s,
            {
                names.CYCLE: state.cycle,
                names.POLICY: self._policy,
                names.HELD: len(state.held),
                names.RUNNING: len(state.running),
                names.DISPATCHED: len(plan.dispatch),
                names.DEFERRED: len(plan.defer),
                names.REJECTED: len(plan.reject),
            },
        )

    def policy_failed(self) -> None:
        """The policy raised and the fallback planned."""
        metrics.PLAN_ERRORS.labels(self._policy).inc()
        self.fallback(True)

    def fallback(self, plans: bool) -> None:
        """Whether a simpler policy than the chosen one planned last; no longer once that one is compiled."""
        metrics.FALLBACK.set(plans)

    def decided(self, waiting: Waiting, decision: Decision, now_s: float) -> None:
        """A decision was sent."""
        request = waiting.claim.request
        metrics.DECISIONS.labels(request.tier, decision.verdict.value).inc()
        if decision.verdict is Verdict.ADMITTED:
            if decision.predicted_ttft_ms is not None:
                metrics.TTFT_S.labels(request.tier, "predicted").observe(decision.predicted_ttft_ms / 1e3)
            if decision.predicted_tpot_ms is not None:
                metrics.TPOT_S.labels(request.tier, "predicted").observe(decision.predicted_tpot_ms / 1e3)
        log.debug(
            "decided",
            request=request.id,
            tier=request.tier,
            verdict=decision.verdict.value,
            reason=decision.reason,
            cycle=decision.cycle,
            wait_ms=round((now_s - request.arrival_s) * 1e3, 3),
        )

    def admission_span(self, waiting: Waiting, decision: Decision, now_s: float) -> Mapping[str, str]:
        """The request's wait and decision as a span, linked to its plan cycle; returns the carrier for workers."""
        request = waiting.claim.request
        stream = f"requests.{request.tier}"
        attributes = {
            **names.process_attributes(stream, waiting.claim.entry),
            **names.decision_attributes(decision, (now_s - request.arrival_s) * 1e3),
            names.REQUEST_ID: request.id,
            names.TIER: request.tier,
            names.ATTEMPT: waiting.claim.attempt,
        }
        links = [self._plan_carrier] if self._plan_carrier else []
        return tracing.record_span(
            names.ADMISSION,
            request.trace,
            waiting.claimed_s,
            now_s,
            attributes,
            links=links,
            kind=SpanKind.CONSUMER,
        )
