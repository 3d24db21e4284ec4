"""Keeps an engine's latency model true: publishes measured steps, and takes over what was refitted from them."""

import asyncio
import contextlib
from typing import Protocol

from common.engine.interface import Engine
from common.errors import BusError
from common.latency_model import LatencyModel
from common.messages import StepSample, StepSamples
from common.telemetry import metrics

PUBLISH_S = 1.0
REFRESH_ROUNDS = 30


class Profiles(Protocol):
    """Where steps go and refitted models come from; both verbs raise BusError without a connection."""

    async def publish(self, kind: str, steps: StepSamples) -> None:
        """Add a worker's measured steps."""

    async def latest(self, kind: str) -> LatencyModel | None:
        """The refitted model of all engines of that kind, None if there is none."""


class Calibrator:
    """One per worker; ``profiles`` None only counts steps."""

    def __init__(self, engine: Engine, worker: str, kind: str, profiles: Profiles | None) -> None:
        self._engine = engine
        self._worker = worker
        self._kind = kind
        self._profiles = profiles
        self._taken: LatencyModel | None = None

    async def run(self) -> None:
        """Work for ever; an outage of the queue loses steps, which are only samples."""
        rounds = 0
        while True:
            with contextlib.suppress(BusError):
                await self.publish()
                if rounds % REFRESH_ROUNDS == 0:
                    await self.refresh()
            rounds += 1
            await asyncio.sleep(PUBLISH_S)

    async def publish(self) -> None:
        """Send what the engine measured since the last time."""
        samples = tuple(self._engine.take_samples())
        for sample in samples:
            _observe(sample)
        if samples and self._profiles is not None:
            await self._profiles.publish(self._kind, StepSamples(self._worker, samples))

    async def refresh(self) -> None:
        """Use the refitted model if there is another than the last time; the engine's own refits go on from it."""
        latest = None if self._profiles is None else await self._profiles.latest(self._kind)
        if latest is not None and latest != self._taken:
            self._engine.latency = self._taken = latest


def _observe(sample: StepSample) -> None:
    metrics.STEP_S.observe(sample.seconds)
    metrics.BATCH_TOKENS.observe(sample.tokens)
