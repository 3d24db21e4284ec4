"""Time as an argument: the wall clock for services, a virtual one for tests and simulations."""

import asyncio
import heapq
import time
from typing import Protocol

_YIELDS_BEFORE_ADVANCE = 25


class Clock(Protocol):
    """What a component with time in it is given."""

    def now_s(self) -> float:
        """Seconds of the Unix epoch."""

    async def sleep(self, seconds: float) -> None:
        """Return after that long on this clock."""


class SystemClock:
    """The machine's clock."""

    def now_s(self) -> float:
        """Seconds of the Unix epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep in the running event loop."""
        await asyncio.sleep(seconds)


class VirtualClock:
    """A clock that jumps to the next sleeper as soon as every other task of the event loop waits.

    Sleepers wake in order of time and then of arrival, so a run repeats exactly.
    """

    def __init__(self, start_s: float = 1_000_000.0) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._pump: asyncio.Task[None] | None = None

    def now_s(self) -> float:
        """Virtual seconds."""
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        """Return when virtual time has come that far."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now_s + max(0.0, seconds), self._count, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._advance())
        await future

    async def _advance(self) -> None:
        while self._sleepers:
            for _ in range(_YIELDS_BEFORE_ADVANCE):
                await asyncio.sleep(0)
            if not self._sleepers:
                return
            wake_s, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                self._now_s = max(self._now_s, wake_s)
                future.set_result(None)
