"""The planner service: a thin shell that reads the queue, calls the policy and sends what it decided.

One leader plans; standbys wait for its lease to run out. All state is in the queue: a new leader reclaims what
its predecessor held and adopts what was dispatched.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from admission.cluster import Cluster
from admission.plan import ClusterState, Plan, Policy
from admission.policies import make_policy
from admission.report import Report
from admission.window import Waiting, Window
from common.bus.interface import START, Bus, Claim
from common.errors import BusError, BusUnavailable, LeadershipLost
from common.keys import ADMISSION
from common.messages import Cancel, Decision, End, KeepTrace, State, Work, WorkerState
from common.settings import Settings
from common.telemetry import tracing
from common.telemetry.logs import get_logger
from common.tiers import Tiers

log = get_logger(__name__)

RETRY_S = 0.2
WORKER_POLL_S = 0.1
BLOCK_S = 0.5
_NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class _Lead:
    """This process leads, under this fencing token, since then."""

    token: int
    since_s: float


class AdmissionService:
    """Runs until cancelled or stopped; ``name`` must be unique to this process."""

    def __init__(
        self, bus: Bus, settings: Settings, tiers: Tiers, name: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._tiers = tiers
        self._name = name
        self._clock = clock
        self._policy: Policy = make_policy(settings.policy)
        self._fallback: Policy = make_policy("fcfs")
        self._window = Window(settings.window, tiers.names)
        self._cluster = Cluster()
        self._lead: _Lead | None = None
        self._cycle = 0
        self._dirty = asyncio.Event()
        self._known: dict[str, WorkerState] = {}
        self._trust_silence_s = 0.0
        self._claims_unsure = False
        self._report = Report(settings.policy)

    @property
    def leading(self) -> bool:
        """Whether this process is the planner leader."""
        return self._lead is not None

    async def readiness(self) -> dict[str, bool]:
        """Ready as leader or standby once the queue answers."""
        try:
            await self._bus.ping()
        except BusError:
            return {"queue": False}
        return {"queue": True}

    async def run(self, stop: asyncio.Event) -> None:
        """Lead when possible, plan while leading; resigns when ``stop`` is set."""
        loops: list[Callable[[], Awaitable[None]]] = [
            self._lead_loop,
            self._workers_loop,
            self._progress_loop,
            self._control_loop,
            self._plan_loop,
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_persist(loop, self._unreachable)) for loop in loops]
            await stop.wait()
            for task in tasks:
                task.cancel()
        with contextlib.suppress(BusError):
            await self._bus.resign(self._name)

    # leadership

    async def _lead_loop(self) -> None:
        while True:
            token = await self._bus.lead(self._name, self._settings.leader_ttl_s)
            if token is None:
                self._step_down("another planner leads")
            elif self._lead is None or self._lead.token != token:
                await self._take_over(token)
            await asyncio.sleep(self._settings.leader_ttl_s / 4)

    async def _take_over(self, token: int) -> None:
        self._window.clear()
        self._cluster.clear()
        self._cluster.beat(await self._bus.workers())
        for worker in await self._bus.workers():
            for record in await self._bus.inflight(worker):
                self._cluster.adopt(record)
        claims = await self._bus.reclaim(self._tiers.names, self._name)
        self._hold(claims)
        self._lead = _Lead(token, self._clock())
        self._report.leading(True)
        log.info("leading", epoch=token, reclaimed=len(claims), adopted=len(self._cluster.running))
        self._dirty.set()

    def _step_down(self, reason: str) -> None:
        if self._lead is not None:
            log.warning("not leading any more", reason=reason)
        self._lead = None
        self._report.leading(False)
        self._window.clear()
        self._cluster.clear()

    def _unreachable(self) -> None:
        """After an outage: workers could not send heartbeats, and the answer to a claim may have been lost."""
        self._trust_silence_s = self._clock() + self._settings.worker_dead_s
        self._claims_unsure = True

    # what happens elsewhere

    async def _workers_loop(self) -> None:
        while True:
            lead = self._lead
            if lead is not None:
                before = set(self._cluster.workers)
                silent = self._cluster.beat(await self._bus.workers())
                self._known |= self._cluster.states
                if self._clock() > self._trust_silence_s:
                    for worker in silent:
                        await self._bury(worker, lead)
                if set(self._cluster.workers) != before:
                    self._dirty.set()
                self._report.fleet(self._cluster.states)
                depths = await self._bus.depths(self._tiers.names)
                self._report.depths(depths, len(self._window), self._clock())
            await asyncio.sleep(WORKER_POLL_S)

    async def _bury(self, worker: str, lead: _Lead) -> None:
        state = self._known.pop(worker, None)
        requeued = await self._bus.requeue(worker, lead.token)
        for request_id in requeued:
            self._cluster.forget(request_id)
        if state is not None and state.draining and not requeued:
            log.info("worker has left", worker=worker)
        else:
            self._report.died(state.prefers if state else None, len(requeued))
            log.warning("worker is dead", worker=worker, requeued=len(requeued))
        self._dirty.set()

    async def _progress_loop(self) -> None:
        cursor = START
        while True:
            cursor, items = await self._bus.progress(cursor, BLOCK_S)
            for item in items:
                self._cluster.progressed(item)
            self._dirty.set()

    async def _control_loop(self) -> None:
        cursor = START
        while True:
            cursor, controls = await self._bus.wait(ADMISSION, cursor, BLOCK_S)
            for control in controls:
                if isinstance(control, Cancel):
                    self._window.pop(control.id)
                    self._cluster.forget(control.id)
                    self._dirty.set()
                elif isinstance(control, KeepTrace):
                    tracing.keep(control.trace_id)

    # planning

    async def _plan_loop(self) -> None:
        wake_s: float | None = None
        while True:
            timeout_s = BLOCK_S if wake_s is None else min(BLOCK_S, max(0.0, wake_s - self._clock()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._dirty.wait()
            self._dirty.clear()
            lead = self._lead
            if lead is None:
                continue
            try:
                wake_s = await self._plan_once(lead)
            except LeadershipLost:
                self._step_down("fenced off")
            await asyncio.sleep(self._settings.replan_ms / 1e3)

    async def _plan_once(self, lead: _Lead) -> float | None:
        await self._claim()
        await self._expire()
        if not len(self._window):
            return None
        self._window.resolve(self._cluster.workers.values())
        self._cycle += 1
        now_s = self._clock()
        state = ClusterState(
            cycle=self._cycle,
            held=[waiting.held for waiting in self._window],
            running=self._cluster.running,
            workers=self._cluster.workers,
            hop_s=self._settings.hop_ms / 1e3,
        )
        plan = self._call_policy(state, now_s)
        self._report.planned(state, plan, now_s, self._clock())
        await self._apply(plan, lead, now_s)
        return plan.wake_s

    def _call_policy(self, state: ClusterState, now_s: float) -> Plan:
        try:
            with self._report.planning():
                return self._policy.plan(state, now_s)
        except Exception:
            log.exception("the policy failed; serving first come first served", policy=self._settings.policy)
            self._report.policy_failed()
            return self._fallback.plan(state, now_s)

    async def _claim(self) -> None:
        if self._claims_unsure:
            mine = await self._bus.reclaim(self._tiers.names, self._name, max_deliveries=_NO_LIMIT)
            self._claims_unsure = False
            self._hold([claim for claim in mine if claim.request.id not in self._window])
        for tier in self._tiers.names:
            room = self._window.room()[tier]
            if room > 0:
                self._hold(await self._bus.claim(tier, self._name, room))

    def _hold(self, claims: Sequence[Claim]) -> None:
        self._window.add(claims, self._cluster.workers.values(), self._clock())

    async def _expire(self) -> None:
        for waiting in self._window.out_of_patience(self._clock()):
            patience_s = waiting.held.patience_s
            detail = f"no capacity within the patience of {patience_s:g} s"
            await self._end(waiting, End(State.EXPIRED, "patience_exceeded", detail, retry_after_s=1.0))

    async def _apply(self, plan: Plan, lead: _Lead, now_s: float) -> None:
        for request_id, decision in plan.dispatch.items():
            await self._dispatch(request_id, decision, lead)
        for request_id, decision in plan.defer.items():
            waiting = self._window.get(request_id)
            if waiting is not None and await self._bus.note(waiting.claim, decision, lead.token):
                self._window.decided(request_id, decision, deferred=True)
                self._report.decided(waiting, decision, now_s)
        for request_id, decision in plan.reject.items():
            waiting = self._window.get(request_id)
            if waiting is not None:
                self._report.decided(waiting, decision, now_s)
                self._report.admission_span(waiting, decision, self._clock())
                await self._bus.note(waiting.claim, decision, lead.token)
                await self._end(
                    waiting, End(State.REJECTED, "slo_not_possible", decision.reason, decision.retry_after_s)
                )

    async def _dispatch(self, request_id: str, decision: Decision, lead: _Lead) -> None:
        waiting = self._window.get(request_id)
        if waiting is None:
            return
        claim = waiting.claim
        trace = self._report.admission_span(waiting, decision, self._clock())
        work = Work(claim.request, decision, claim.attempt, claim.generated, trace=trace)
        self._cluster.dispatched(waiting.held, decision, claim.attempt)
        if await self._bus.dispatch(claim, work, lead.token):
            self._report.decided(waiting, decision, self._clock())
        else:
            self._cluster.forget(request_id)
        self._window.pop(request_id)

    async def _end(self, waiting: Waiting, end: End) -> None:
        claim = waiting.claim
        if end.retry_after_s is not None and not math.isfinite(end.retry_after_s):
            end = replace(end, retry_after_s=None)
        await self._bus.end(claim.request.id, end, claim.attempt)
        self._window.pop(claim.request.id)


async def _persist(loop: Callable[[], Awaitable[None]], outage: Callable[[], None]) -> None:
    """Run a loop for ever, starting it anew when the queue was away."""
    while True:
        try:
            await loop()
        except BusUnavailable as error:
            outage()
            log.warning("the queue is unavailable", error=str(error))
            await asyncio.sleep(RETRY_S)
        except LeadershipLost:
            await asyncio.sleep(RETRY_S)
        except BusError:
            log.exception("queue error")
            await asyncio.sleep(RETRY_S)
