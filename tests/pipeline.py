"""A whole pipeline but for HTTP in one process: planner, workers and simulated engines on any bus."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from admission.service import AdmissionService
from common.bus.interface import START, Bus
from common.engine.interface import Engine
from common.engine.simulated import KvRegistry, SimulatedEngine
from common.latency_model import LatencyModel, Piece
from common.messages import Decided, Frame, Record, Stage
from common.settings import Settings
from common.tiers import load_tiers
from common.worker.host import WorkerHost

QUICK = LatencyModel((Piece(k_token=1e-5, k_draft=0.0, base=0.001),), k_seq=1e-5)
"""A simulated engine fast enough for tests."""

WAIT_S = 20.0


@dataclass
class Node:
    """One worker in the test's process."""

    host: WorkerHost
    engine: Engine
    task: "asyncio.Task[None]"
    stop: asyncio.Event

    async def kill(self) -> None:
        """End it as ``kill -9`` would: no farewell, no further frame."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Pipeline:
    """What a test talks to."""

    bus: Bus
    settings: Settings
    registry: KvRegistry = field(default_factory=KvRegistry)
    nodes: list[Node] = field(default_factory=list)
    services: list[AdmissionService] = field(default_factory=list)
    _background: list["asyncio.Task[None]"] = field(default_factory=list)

    async def add_planner(self, name: str = "planner") -> AdmissionService:
        service = AdmissionService(self.bus, self.settings, load_tiers(), name)
        self.services.append(service)
        self._background.append(asyncio.create_task(service.run(asyncio.Event())))
        return service

    async def add_worker(self, prefers: Stage, latency: LatencyModel = QUICK) -> Node:
        engine = SimulatedEngine(self.settings, latency=latency, registry=self.registry, total_blocks=2000)
        host = WorkerHost(self.bus, engine, self.settings, prefers, tuple(Stage))
        stop = asyncio.Event()
        node = Node(host, engine, asyncio.create_task(host.run(stop)), stop)
        self.nodes.append(node)
        await until(lambda: node.host.readiness()["registered"] or node.task.done())
        return node

    async def ended(self, request_id: str) -> Record:
        """The record once the request has ended."""
        async with asyncio.timeout(WAIT_S):
            while True:
                record = await self.bus.record(request_id)
                if record is not None and record.state.ended:
                    return record
                await asyncio.sleep(0.005)

    async def text(self, api: str, request_id: str) -> tuple[list[int], list[Decided]]:
        """Tokens by position and decisions that an api replica got for one request, up to its end."""
        tokens: list[int] = []
        decisions: list[Decided] = []
        cursor = START
        async with asyncio.timeout(WAIT_S):
            while True:
                cursor, replies = await self.bus.replies(api, cursor, 1.0)
                for reply in (reply for reply in replies if reply.id == request_id):
                    if isinstance(reply, Frame):
                        assert reply.position == len(tokens)
                        tokens.extend(reply.tokens)
                        if reply.end is not None:
                            return tokens, decisions
                    else:
                        decisions.append(reply)

    async def close(self) -> None:
        for task in [*self._background, *(node.task for node in self.nodes)]:
            task.cancel()
        await asyncio.gather(*self._background, *(node.task for node in self.nodes), return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another task will make true."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


def quick_settings(**changes: object) -> Settings:
    """Settings with heartbeats short enough for tests."""
    values: dict[str, object] = {
        "heartbeat_s": 0.05,
        "worker_dead_s": 0.5,
        "leader_ttl_s": 0.5,
        "drain_s": 5.0,
        "policy": "edf",
    }
    return Settings.model_validate({**values, "engine": "simulated", **changes})


@contextlib.asynccontextmanager
async def running_pipeline(bus: Bus, prefill: int = 1, decode: int = 1, **changes: object) -> AsyncIterator[Pipeline]:
    """A planner that leads and workers that are registered."""
    pipeline = Pipeline(bus, quick_settings(**changes))
    try:
        for stage, count in ((Stage.PREFILL, prefill), (Stage.DECODE, decode)):
            for _ in range(count):
                await pipeline.add_worker(stage)
        service = await pipeline.add_planner()
        await until(lambda: service.leading)
        yield pipeline
    finally:
        await pipeline.close()


def now() -> float:
    """Seconds of the epoch, as everywhere."""
    return time.time()
