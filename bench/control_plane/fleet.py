"""``python -m bench.control_plane.fleet``: many workers with simulated engines in one process.

Each is a :class:`common.worker.host.WorkerHost` as a worker process has it, on a bus that all share. A step of an
engine takes the same time whatever is in it, so that engines are never what is short; batches are first come first
served, as forming better ones is an engine's work.
"""

import asyncio
import os

from common.bus.redis import RedisBus
from common.engine.simulated import KvRegistry, SimulatedEngine
from common.latency_model import LatencyModel, Piece
from common.messages import Stage
from common.process import run
from common.settings import Settings
from common.worker.host import WorkerHost

WORKERS, STEP_MS = "BENCH_WORKERS", "BENCH_STEP_MS"
"""Environment variables: how many, and how long a step takes."""

_S_PER_TOKEN = 1e-7


def hosts(bus: RedisBus, settings: Settings, count: int, step_s: float) -> list[WorkerHost]:
    """A quarter prefers prompts, at least one; all may do both."""
    registry, latency = KvRegistry(), LatencyModel((Piece(_S_PER_TOKEN, 0.0, step_s),))
    settings = settings.model_copy(update={"batch_policy": "stock"})
    prefers = [Stage.PREFILL if number % 4 == 0 else Stage.DECODE for number in range(count)]
    return [
        WorkerHost(bus, SimulatedEngine(settings, latency=latency, registry=registry), settings, one, tuple(Stage))
        for one in prefers
    ]


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Run all workers until told to stop; ends with the first that fails."""
    bus = RedisBus.connect(settings)
    step_s = float(os.environ[STEP_MS]) / 1e3
    try:
        async with asyncio.TaskGroup() as group:
            for host in hosts(bus, settings, int(os.environ[WORKERS]), step_s):
                group.create_task(host.run(stop))
    finally:
        await bus.close()


if __name__ == "__main__":
    run("fleet", main, about=__doc__)
