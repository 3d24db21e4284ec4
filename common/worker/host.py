"""A worker: takes work from its streams, runs it on its engine, sends frames, hands KV over, stays alive.

The same host serves prefill and decode; ``prefers`` is what the planner uses it for first, ``may`` what it can be
used for. A worker id is never used twice: whatever a dead process had is put back under its old id.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from common.bus.interface import START, Bus
from common.engine.interface import Engine, Facts
from common.errors import BusError, BusUnavailable, EngineDead, EngineRefused, SlosError
from common.latency_model import LatencyModel
from common.messages import Cancel, Control, HandOff, KeepTrace, Known, Stage, Work, WorkerState
from common.settings import Settings
from common.telemetry import metrics, tracing
from common.telemetry.logs import get_logger
from common.worker import report
from common.worker.calibrating import Calibrator, Profiles
from common.worker.job import WorkJob
from common.worker.outbox import Outbox
from common.worker.pulls import PullPace
from common.worker.rehearsal import rehearse

log = get_logger(__name__)

BLOCK_S = 1.0
RETRY_S = 0.1
NOTICE_S = 0.3
"""Until the planner has surely seen that a worker drains, and what it sent before has arrived."""
REST_S = 0.001
"""After work was taken: it begins before more is asked for, and what follows closely comes together."""
SPARE_INTAKE = 64
"""Work taken beyond what the engine can run at once, so that it never waits for the queue."""


Measure = Callable[[Engine, Facts], Awaitable[LatencyModel]]
"""Gives the latency model of an engine that has just started."""


class WorkerLost(SlosError):
    """The leader has declared this worker dead; its requests run elsewhere."""


class WorkerHost:
    """One worker process; see the module."""

    def __init__(
        self,
        bus: Bus,
        engine: Engine,
        settings: Settings,
        prefers: Stage,
        may: tuple[Stage, ...],
        profiles: Profiles | None = None,
        measure: Measure | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.id = f"{settings.worker_name or prefers.value}.{secrets.token_hex(4)}"
        self.url = ""
        self._bus = bus
        self._engine = engine
        self._settings = settings
        self._prefers = prefers
        self._may = may
        self._profiles = profiles
        self._measure = measure
        self._clock = clock
        self._started_s = clock()
        self._facts: Facts | None = None
        self._jobs: dict[str, tuple[WorkJob, asyncio.Task[None]]] = {}
        self._kept: dict[str, HandOff] = {}
        self._met = {self.id}
        self._pulls = PullPace()
        self._draining = False
        self._beaten = False
        self._known = False
        self._died: asyncio.Future[None] | None = None

    def readiness(self) -> dict[str, bool]:
        """Ready once the engine runs and the planner has been told."""
        return {"engine": self._facts is not None, "registered": self._beaten, "not_draining": not self._draining}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then drain. Raises EngineDead or WorkerLost when it can't go on."""
        self._died = asyncio.get_running_loop().create_future()
        facts = await self._engine.start()
        if self._measure is not None:
            self._engine.latency = await self._measure(self._engine, facts)
        self._facts = facts
        metrics.TOTAL_BLOCKS.set(facts.total_blocks)
        calibrator = Calibrator(self._engine, self.id, facts.kind, self._profiles)
        log.info("engine ready", worker=self.id, model=self._facts.model, blocks=self._facts.total_blocks)
        self._outbox = Outbox(self._bus, self.id, self._lost, self._engine.busy_until_s)
        loops = [asyncio.create_task(self._outbox.run())]
        try:
            await rehearse(self.id, self._engine, facts, self._outbox)
            others = (self._beat_loop(), self._intake_loop(), self._meet_loop(), calibrator.run())
            loops += [asyncio.create_task(loop) for loop in others]
            await self._until(stop, loops)
            await self._drain()
        finally:
            for task in [*loops, *(task for _, task in self._jobs.values())]:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            with contextlib.suppress(BusError):
                await self._bus.leave(self.id)
            await self._engine.close()

    async def _until(self, stop: asyncio.Event, loops: list[asyncio.Task[None]]) -> None:
        """Wait for ``stop``; whatever ends a loop ends the worker."""
        assert self._died is not None
        stopped = asyncio.create_task(stop.wait())
        watched: list[asyncio.Future[Any]] = [stopped, self._died, *loops]
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self._died.done():
            self._died.result()
        for task in loops:
            if task.done():
                task.result()

    async def _drain(self) -> None:
        """Finish what runs and wait until kept KV was pulled, within the drain time."""
        self._draining = True
        log.info("draining", worker=self.id, jobs=len(self._jobs))
        with contextlib.suppress(TimeoutError, BusError):
            async with asyncio.timeout(self._settings.drain_s):
                await self._beat()
                await asyncio.sleep(NOTICE_S)
                while self._jobs or await self._bus.inflight(self.id):
                    await asyncio.sleep(RETRY_S)
                await self._outbox.flush()
                await self._engine.drain()

    # staying alive

    async def _beat_loop(self) -> None:
        wait_s = secrets.SystemRandom().uniform(0.0, self._settings.heartbeat_s)  # who started together beats apart
        while True:
            with contextlib.suppress(BusUnavailable):
                await self._beat()
            await asyncio.sleep(wait_s)
            wait_s = self._settings.heartbeat_s

    async def _beat(self) -> None:
        if not await self._bus.beat(self._state(), self._settings.worker_dead_s):
            raise WorkerLost(f"worker {self.id} was declared dead")
        self._beaten = True
        now_s = self._clock()
        for request_id in [name for name, kept in self._kept.items() if now_s > kept.expires_s]:
            del self._kept[request_id]

    def _state(self) -> WorkerState:
        assert self._facts is not None
        facts, load = self._facts, self._engine.load()
        report.load(load)
        return WorkerState(
            id=self.id,
            prefers=self._prefers,
            may=self._may,
            fingerprint=facts.fingerprint,
            machine=facts.machine,
            model=facts.model,
            max_model_len=facts.max_model_len,
            block_size=facts.block_size,
            total_blocks=facts.total_blocks,
            free_blocks=load.free_blocks,
            max_seqs=facts.max_seqs,
            max_batch_tokens=facts.max_batch_tokens,
            queued=load.waiting,
            queued_tokens=load.waiting_tokens,
            running=load.running,
            running_tokens=load.running_tokens,
            step_ms=load.step_ms,
            latency=load.latency,
            draining=self._draining,
            ready=True,
            url=self.url,
            started_s=self._started_s,
            beat_s=self._clock(),
            address=self._engine.address(),
            known=self._known,
            pull_s_per_token=self._pulls.s_per_token,
            draft_tokens=load.draft_tokens,
            slowdown=load.slowdown,
        )

    async def _meet_loop(self) -> None:
        """Shake hands with new peers, so that the first pull does not have to."""
        while True:
            with contextlib.suppress(BusUnavailable):
                for name, state in (await self._bus.workers(but=self._met)).items():
                    if state is not None:
                        self._met.add(name)
                        await self._meet(state)
            await asyncio.sleep(1.0)

    async def _meet(self, peer: WorkerState) -> None:
        assert self._facts is not None
        if peer.fingerprint == self._facts.fingerprint:
            try:
                await self._engine.introduce(peer.address)
            except SlosError as error:
                log.warning("peer could not be introduced", peer=peer.id, error=str(error))

    # work

    async def _intake_loop(self) -> None:
        cursor = START
        while True:
            try:
                room = self._room()
                cursor, controls, work = await self._bus.wait(self.id, cursor, BLOCK_S if room else RETRY_S, room)
                for stage, one in work:  # first, as it is not told again, and what a control asks of the queue may fail
                    self._start(one, stage)
                for control in controls:
                    await self._control(control)
                if work:
                    await asyncio.sleep(REST_S)
            except BusUnavailable:
                await asyncio.sleep(RETRY_S)

    def _room(self) -> int:
        return max(0, self._settings.max_num_seqs + SPARE_INTAKE - len(self._jobs))

    async def _control(self, control: Control) -> None:
        if isinstance(control, Known):
            self._known = True
            await self._beat()
            return
        if isinstance(control, KeepTrace):
            tracing.keep(control.trace_id)
            return
        job, task = self._jobs.get(control.id, (None, None))
        if job is not None and task is not None and job.work.attempt <= control.attempt:
            task.cancel()
        kept = self._kept.pop(control.id, None)
        if kept is not None:
            await self._engine.release(kept)

    def _start(self, work: Work, stage: Stage) -> None:
        linger_s = self._settings.frame_ms / 1e3
        job = WorkJob(work, stage, self.id, self._engine, self._outbox, self._clock, linger_s)
        if work.request.id in self._jobs:
            self._jobs[work.request.id][1].cancel()
        task = asyncio.create_task(self._run(job))
        self._jobs[work.request.id] = (job, task)
        task.add_done_callback(lambda done: self._finished(work.request.id, done))

    def _finished(self, request_id: str, task: asyncio.Task[None]) -> None:
        if request_id in self._jobs and self._jobs[request_id][1] is task:
            del self._jobs[request_id]
        if not task.cancelled() and task.exception() is not None:
            self._die(task.exception())

    def _lost(self, request_id: str) -> None:
        """A frame was refused: the request has ended or is somebody else's."""
        if request_id in self._jobs and self._jobs[request_id][0].times.end is None:
            self._jobs[request_id][1].cancel()

    def _die(self, error: BaseException | None) -> None:
        if self._died is not None and not self._died.done() and error is not None:
            self._died.set_exception(error)

    async def _run(self, job: WorkJob) -> None:
        request_id = job.work.request.id
        try:
            onward = await job.run()
            if onward is not None:
                await self._hand_off(onward)
        except EngineRefused as error:
            job.fail("refused_by_engine", str(error))
        except EngineDead:
            raise
        except SlosError as error:
            log.exception("job failed", request=request_id)
            job.fail("worker_error", str(error))
        finally:
            report.job(job, self.id, self._clock())
            if job.pulled_s is not None and job.work.hand_off is not None:
                self._pulls.observe(job.pulled_s, job.work.hand_off.tokens)
            if job.times.dropped_hand_off and job.work.hand_off is not None:
                await self._give_up(job.work)

    async def _hand_off(self, work: Work) -> None:
        assert work.hand_off is not None
        request_id = work.request.id
        self._kept[request_id] = work.hand_off
        while self._clock() < work.hand_off.expires_s:
            try:
                if not await self._bus.hand_off(self.id, work):
                    break
                return
            except BusUnavailable:
                await asyncio.sleep(RETRY_S)
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            await self._engine.release(kept)

    async def _give_up(self, work: Work) -> None:
        """Tell the producer that nobody will pull."""
        producer = work.decision.prefill_worker
        if producer is not None:
            with contextlib.suppress(BusError):
                await self._bus.send(producer, Cancel(work.request.id, work.attempt, "hand_off_dropped"))


def stages(text: str) -> tuple[Stage, ...]:
    """Parse ``prefill,decode``; raises ValueError."""
    found = tuple(Stage(part.strip()) for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("a worker must be allowed at least one stage")
    return found
