"""A planner and a worker in miniature, so that the api is tested without them: what it sends is set by the test."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from common.bus.interface import START, Claim
from common.bus.memory import MemoryBus
from common.latency_model import LatencyModel, Piece
from common.messages import (
    Cancel,
    Control,
    Decision,
    End,
    Frame,
    KeepTrace,
    Stage,
    State,
    Verdict,
    Work,
    WorkerState,
)
from common.tiers import load_tiers

PLANNER, PREFILL, DECODE = "planner-1", "prefill-1", "decode-1"
WORKERS = {PREFILL: Stage.PREFILL, DECODE: Stage.DECODE}

Script = Callable[[Work], Sequence[Sequence[int]]]
"""The tokens of each frame that a work gets; the last frame ends it."""


def echo(work: Work) -> list[list[int]]:
    """The prompt again, a token a frame, up to ``max_tokens``."""
    return [[token] for token in work.request.prompt[: work.request.sampling.max_tokens]]


def decision(**changes: object) -> Decision:
    made = Decision(
        verdict=Verdict.ADMITTED,
        reason="feasible",
        cycle=1,
        decided_s=time.time(),
        ttft_ms=60_000.0,
        tpot_ms=60_000.0,
        predicted_ttft_ms=12.5,
        inputs={"held": 2.0, "hop_ms": 3.5},
        predicted_tpot_ms=3.25,
        prefill_worker=PREFILL,
        decode_worker=DECODE,
    )
    return replace(made, **changes)  # type: ignore[arg-type] # the test names real fields


def admitted(_claim: Claim) -> Decision:
    return decision()


def deferred(_claim: Claim) -> Decision:
    """Told so, and left waiting."""
    return decision(verdict=Verdict.DEFERRED, reason="overload", prefill_worker=None, decode_worker=None)


def rejected(_claim: Claim) -> Decision:
    return decision(verdict=Verdict.REJECTED, reason="overload", prefill_worker=None, retry_after_s=6.2)


def unattainable(_claim: Claim) -> Decision:
    reason = "slo_unattainable: TTFT is at least 17.1 ms for this prompt"
    return decision(verdict=Verdict.REJECTED, reason=reason, prefill_worker=None)


@dataclass
class Pipeline:
    """Serves what waits until its context ends. ``gate`` holds every work back after ``pause_after`` frames."""

    bus: MemoryBus
    script: Script = echo
    decide: Callable[[Claim], Decision] = admitted
    finish: str = "length"
    pause_after: int | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    works: list[Work] = field(default_factory=list)
    controls: list[tuple[str, Control]] = field(default_factory=list)
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)
    token: int = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Pipeline"]:
        self.token = await self.bus.lead(PLANNER, 3600.0) or 0
        for worker, stage in WORKERS.items():
            await self.bus.beat(worker_state(worker, stage), 3600.0)
        names = ("admission", DECODE)  # the prefill worker's control stream is read by work()
        tasks = [asyncio.create_task(self.plan()), asyncio.create_task(self.work())]
        tasks += [asyncio.create_task(self.listen(name)) for name in names]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def plan(self) -> None:
        cursor = START
        while True:
            for tier in load_tiers().names:
                for claim in await self.bus.claim(tier, PLANNER, 100):
                    await self.decided(claim)
            cursor, *_ = await self.bus.progress(cursor, 10.0)

    async def decided(self, claim: Claim) -> None:
        decision = self.decide(claim)
        if decision.verdict is Verdict.REJECTED:
            await self.bus.note(claim, decision, self.token)
            end = End(State.REJECTED, "slo_not_possible", decision.reason, decision.retry_after_s)
            await self.bus.end(claim.request.id, end, claim.attempt)
        elif decision.prefill_worker is None:
            await self.bus.note(claim, decision, self.token)
        else:
            work = Work(claim.request, decision, claim.attempt, claim.generated, trace=claim.request.trace)
            await self.bus.dispatch(claim, work, self.token)

    async def work(self) -> None:
        cursor = START
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                cursor, controls, taken = await self.bus.wait(PREFILL, cursor, 10.0, 100)
                for _, work in taken:
                    self.works.append(work)
                    running.add(asyncio.create_task(self.run(work)))
                await self.hear(PREFILL, controls)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def run(self, work: Work) -> None:
        frames = self.script(work)
        position = 0
        for index, tokens in enumerate(frames):
            if index == self.pause_after:
                self.paused.set()
                await self.gate.wait()
            end = End(State.DONE, self.finish) if index == len(frames) - 1 else None
            frame = Frame(work.request.id, work.attempt, position, tuple(tokens), time.time(), end)
            if not all(await self.bus.emit(PREFILL, [frame])):
                return
            position += len(tokens)
            await asyncio.sleep(0)

    async def listen(self, name: str) -> None:
        cursor = START
        while True:
            cursor, controls, _ = await self.bus.wait(name, cursor, 10.0)
            await self.hear(name, controls)

    async def hear(self, name: str, controls: Sequence[Control]) -> None:
        async with self.heard:
            self.controls += [(name, control) for control in controls]
            self.heard.notify_all()

    async def cancelled(self, request_id: str, timeout_s: float = 1.0) -> Cancel:
        """The cancel of a request, which must come within a second."""

        def found() -> list[Cancel]:
            controls = (control for _, control in self.controls)
            return [control for control in controls if isinstance(control, Cancel) and control.id == request_id]

        async with asyncio.timeout(timeout_s), self.heard:
            await self.heard.wait_for(lambda: bool(found()))
        return found()[0]

    def kept(self) -> list[tuple[str, str]]:
        return [(name, control.trace_id) for name, control in self.controls if isinstance(control, KeepTrace)]


def worker_state(name: str, stage: Stage, **changes: object) -> WorkerState:
    state = WorkerState(
        id=name,
        prefers=stage,
        may=(stage,),
        fingerprint="test",
        model="test",
        max_model_len=4096,
        block_size=16,
        total_blocks=100,
        free_blocks=100,
        max_seqs=8,
        max_batch_tokens=512,
        queued=0,
        queued_tokens=0,
        running=0,
        running_tokens=0,
        step_ms=1.0,
        latency=LatencyModel((Piece(1e-4, 0.0, 1e-3),)),
        draining=False,
        ready=True,
        url="http://127.0.0.1:1",
        started_s=0.0,
        beat_s=0.0,
        known=True,
    )
    return replace(state, **changes)  # type: ignore[arg-type] # the test names real fields


async def eventually(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Poll until it holds."""
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)
