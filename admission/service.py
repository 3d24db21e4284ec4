"""The planner service: a thin shell that follows the queue, and plans while it leads.

One leader plans; standbys wait for its lease to run out. All state is in the queue: a new leader reclaims what
its predecessor held and adopts what was dispatched.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping

from admission.planning import Lead, Planning
from admission.report import Report
from common import beside
from common.bus.interface import START, Bus
from common.errors import BusError, BusUnavailable, LeadershipLost
from common.keys import ADMISSION
from common.messages import Cancel, KeepTrace, Known, WorkerState
from common.settings import Settings
from common.telemetry import tracing
from common.telemetry.logs import get_logger
from common.tiers import Tiers

log = get_logger(__name__)

RETRY_S = 0.2
WORKER_POLL_S = 0.1
BLOCK_S = 0.5
STOOD_STILL = 0.5
"""If the planner has not looked for so much of the time after which a silent worker is dead, the machine may have stood
still, and the workers with it: they get that time again. So they do from one that has never looked."""
LETTERS = 1000
LETTERS_S = 5.0


class AdmissionService:
    """Runs until cancelled or stopped; ``name`` must be unique to this process.

    ``compiled`` is called once the policy has loaded all that it needs.
    """

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        tiers: Tiers,
        name: str,
        clock: Callable[[], float] = time.time,
        compiled: Callable[[], None] = lambda: None,
    ) -> None:
        self._bus = bus
        self._compiled = compiled
        self._settings = settings
        self._tiers = tiers
        self._name = name
        self._clock = clock
        self._report = Report(settings.policy)
        self.planning = Planning(bus, settings, tiers, name, self._report, clock)
        self._lead: Lead | None = None
        self._dirty = asyncio.Event()
        self._known: dict[str, WorkerState] = {}
        self._trust_silence_s = 0.0

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
            self._letters_loop,
            self._warm_up,
        ]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_persist(loop, self._unreachable)) for loop in loops]
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self.planning.close()
        with contextlib.suppress(BusError):
            await self._bus.resign(self._name)

    async def _warm_up(self) -> None:
        """Compile beside planning; a plan by a simpler policy is better than none."""
        try:
            await beside.run(self.planning.warm_up)
        except Exception:
            log.exception("the policy can't be compiled; a simpler one plans on", policy=self._settings.policy)
            self._report.policy_failed()
        else:
            self._compiled()
            log.info("planning", policy=self._settings.policy)
        await asyncio.Event().wait()

    async def _lead_loop(self) -> None:
        while True:
            token = await self._bus.lead(self._name, self._settings.leader_ttl_s)
            if token is None:
                self._step_down("another planner leads")
            elif self._lead is None or self._lead.token != token:
                await self._take_over(token)
            await asyncio.sleep(self._settings.leader_ttl_s / 4)

    async def _take_over(self, token: int) -> None:
        self.planning.clear()
        workers = await self._bus.workers()
        self.planning.cluster.beat(workers)
        records = [record for worker in workers for record in await self._bus.inflight(worker)]
        claims = await self._bus.reclaim(self._tiers.names, self._name)
        self.planning.take_over(records, claims)
        self._lead = Lead(token)
        self._report.leading(True)
        log.info("leading", epoch=token, reclaimed=len(claims), adopted=len(records))
        self._dirty.set()

    def _step_down(self, reason: str) -> None:
        if self._lead is not None:
            log.warning("not leading any more", reason=reason)
        self._lead = None
        self._report.leading(False)
        self.planning.clear()

    def _unreachable(self) -> None:
        """After an outage: workers could not send heartbeats, and the answer to a claim may have been lost."""
        self._trust_silence_s = self._clock() + self._settings.worker_dead_s
        self.planning.doubt_claims()

    async def _workers_loop(self) -> None:
        cluster = self.planning.cluster
        looked_s = -math.inf
        while True:
            lead = self._lead
            if lead is not None:
                before = set(cluster.workers)
                silent = cluster.beat(await self._bus.workers())
                self._known |= cluster.states
                since_s, looked_s = looked_s, self._clock()
                if looked_s - since_s > STOOD_STILL * self._settings.worker_dead_s:
                    self._trust_silence_s = looked_s + self._settings.worker_dead_s
                if self._clock() > self._trust_silence_s:
                    for worker in silent:
                        await self._bury(worker, lead)
                await self._introduce(cluster.states)
                if set(cluster.workers) != before:
                    self._dirty.set()
                self._report.fleet(cluster.states)
                depths = await self._bus.depths(self._tiers.names)
                self._report.depths(depths, len(self.planning.window), self._clock())
            await asyncio.sleep(WORKER_POLL_S)

    async def _introduce(self, states: Mapping[str, WorkerState]) -> None:
        """Tell new workers that they are planned with: until then the pipeline is not ready."""
        for worker, state in states.items():
            if state.ready and not state.known:
                await self._bus.send(worker, Known(self._name))

    async def _bury(self, worker: str, lead: Lead) -> None:
        state = self._known.pop(worker, None)
        requeued = await self._bus.requeue(worker, lead.token)
        for request_id in requeued:
            self.planning.forget(request_id)
        if state is not None and state.draining and not requeued:
            log.info("worker has left", worker=worker)
        else:
            self._report.died(state.prefers if state else None, len(requeued))
            log.warning("worker is dead", worker=worker, requeued=len(requeued))
        self._dirty.set()

    async def _progress_loop(self) -> None:
        cursor = START
        while True:
            news = await self._bus.progress(cursor, BLOCK_S)
            cursor = news.cursor
            for item in news.items:
                self.planning.progressed(item)
            if news.arrived:
                self.planning.arrived()
            self._dirty.set()
            await asyncio.sleep(0)  # a plan first, then the next question

    async def _control_loop(self) -> None:
        cursor = START
        while True:
            cursor, controls, _ = await self._bus.wait(ADMISSION, cursor, BLOCK_S)
            for control in controls:
                if isinstance(control, Cancel):
                    self.planning.cancelled(control.id)
                    self._dirty.set()
                elif isinstance(control, KeepTrace):
                    tracing.keep(control.trace_id)

    async def _letters_loop(self) -> None:
        while True:
            self._report.dead_letters(await self._bus.dead_letters(LETTERS))
            await asyncio.sleep(LETTERS_S)

    async def _plan_loop(self) -> None:
        wake_s: float | None = None
        while True:
            timeout_s = BLOCK_S if wake_s is None else min(BLOCK_S, max(0.0, wake_s - self._clock()))
            try:
                async with asyncio.timeout(timeout_s):
                    await self._dirty.wait()
            except TimeoutError:
                self.planning.arrived()  # look from time to time, whatever was heard
            self._dirty.clear()
            lead = self._lead
            if lead is None:
                wake_s = None
                continue
            began_s, cycle = time.monotonic(), self.planning.cycle
            try:
                wake_s = await self.planning.plan_once(lead)
            except LeadershipLost:
                self._step_down("fenced off")
            if self.planning.cycle != cycle:  # else nothing was held, and who comes next need not wait
                await asyncio.sleep(max(0.0, began_s + self._settings.replan_ms / 1e3 - time.monotonic()))


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
