"""Engines for tests: simulated pairs, and a pool of real ones that holds at most two at a time."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.codec import Tokens
from common.engine.interface import Engine, Facts, Job, Output
from common.engine.simulated import KvRegistry, SimulatedEngine
from common.engine.vllm import VllmEngine
from common.latency_model import LatencyModel, Piece
from common.messages import Sampling
from common.settings import Settings

LONGEST = "LONGEST_BATCHES"
"""Environment variable: the file to which random batches add how long each may be at most, in seconds."""
TARGET = Path("bench/tiny_model/target")
LEASE_S = 12.0
"""Long enough for the first pulls of twenty prompts on a loaded core, short enough to wait for."""
BLOCK = 32
GREEDY = Sampling(max_tokens=10, temperature=0, ignore_eos=True)
QUICK = LatencyModel((Piece(2e-5, 0.0, 1e-3),))


def make_settings(**changes: Any) -> Settings:
    base = {"kv_cache_gib": 0.25, "max_num_seqs": 8, "max_num_batched_tokens": 256, "kv_lease_s": LEASE_S}
    return Settings(**{**base, "kv_pull_timeout_s": LEASE_S / 2, "block_size": BLOCK, **changes})


def make_prompt(length: int, seed: int = 0) -> Tokens:
    return tuple(20 + (n * 7919 + seed * 104729 + n * n) % 2000 for n in range(length))


PROMPT = make_prompt(40)


def make_job(prompt: Tokens = PROMPT, sampling: Sampling = GREEDY, **changes: Any) -> Job:
    return Job("job", prompt, sampling, **changes)


async def collect(engine: Engine, job: Job) -> list[Output]:
    return [output async for output in engine.generate(job)]


def tokens_of(outputs: Iterable[Output]) -> Tokens:
    return tuple(token for output in outputs for token in output.tokens)


def notes_of(outputs: Iterable[Output]) -> dict[str, float]:
    return {name: value for output in outputs for name, value in output.notes.items()}


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


@dataclass
class Started:
    engine: Engine
    facts: Facts
    process: Any = None

    def free(self) -> bool:
        return self.engine.load().free_blocks == self.facts.total_blocks

    def kill(self) -> None:
        if isinstance(self.engine, SimulatedEngine):
            self.engine.kill()
        else:
            os.kill(self.process.pid, signal.SIGKILL)


class SimulatedPool:
    """Simulated engines by name; they pull from each other."""

    def __init__(self) -> None:
        self._registry = KvRegistry()
        self._started: dict[str, Started] = {}

    async def get(self, name: str, **changes: Any) -> Started:
        if name not in self._started:
            engine = SimulatedEngine(
                make_settings(model="none", **changes), latency=QUICK, registry=self._registry, transfer_s=0.002
            )
            self._started[name] = Started(engine, await engine.start())
        return self._started[name]

    def forget(self, name: str) -> None:
        self._started.pop(name)

    @asynccontextmanager
    async def stalled_pulls(self) -> AsyncIterator[None]:
        """Within this, a pull from the engine named producer does not come to an end."""
        consumer = self._started["consumer"].engine
        assert isinstance(consumer, SimulatedEngine)
        consumer.transfer_s, usual_s = 3600.0, consumer.transfer_s
        yield
        consumer.transfer_s = usual_s

    async def close(self) -> None:
        for started in self._started.values():
            await started.engine.close()


class VllmPool:
    """Real engines by name, started when first asked for; the least recently used goes when a third is wanted."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._started: dict[str, Started] = {}

    async def get(self, name: str, **changes: Any) -> Started:
        if name in self._started:
            self._started[name] = self._started.pop(name)
            return self._started[name]
        await self.make_room(1)
        before = set(multiprocessing.active_children())
        engine = VllmEngine(make_settings(model=self._model, **changes))
        facts = await engine.start()
        (process,) = set(multiprocessing.active_children()) - before
        self._started[name] = Started(engine, facts, process)
        return self._started[name]

    async def make_room(self, left: int) -> None:
        while len(self._started) > left:
            await self._started.pop(next(iter(self._started))).engine.close()

    def forget(self, name: str) -> None:
        self._started.pop(name)

    @asynccontextmanager
    async def stalled_pulls(self) -> AsyncIterator[None]:
        """Within this, a pull from the engine named producer does not come to an end."""
        producer = self._started["producer"].process
        os.kill(producer.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(producer.pid, signal.SIGCONT)

    async def close(self) -> None:
        await self.make_room(0)


Pool = SimulatedPool | VllmPool
