"""Frames on their way to Redis: all that an engine step produced travels in one call, or that several steps did.

First tokens go ahead of many others.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from common.bus.interface import WorkerBus
from common.errors import BusError, BusUnavailable
from common.messages import Frame
from common.telemetry.logs import get_logger

log = get_logger(__name__)

RETRY_S = 0.1
FEW = 8
"""First tokens do not wait for more frames than these to be packed, stored and unpacked with them."""


class Outbox:
    """Collects frames while the previous call is under way, or they may wait; one frame per request and call.

    ``rejected`` is called with the id of a request that this worker has lost: it has ended or was given to another.
    ``busy_until_s`` is asked with each call when the engine's present iteration ends, which the planner wants to know.
    """

    def __init__(
        self,
        bus: WorkerBus,
        worker: str,
        rejected: Callable[[str], None],
        busy_until_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._rejected = rejected
        self._busy_until_s = busy_until_s
        self._frames: dict[str, Frame] = {}
        self._sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending: asyncio.Future[None] | None = None
        self._pending = asyncio.Event()
        self._waiting: asyncio.TimerHandle | None = None

    def put(self, frame: Frame, wait_s: float = 0.0) -> "asyncio.Future[None]":
        """Queue a frame, which leaves within ``wait_s``; the future is done when it has been stored, or refused.

        It leaves with any that can't wait, so waits of one outbox should be equal.
        """
        before = self._frames.get(frame.id)
        self._frames[frame.id] = frame if before is None else _joined(before, frame)
        if wait_s <= 0 or self._busy_until_s() - frame.time_s > wait_s:  # the next step's would come too late
            self._leave()
        elif self._waiting is None:
            self._waiting = asyncio.get_running_loop().call_later(wait_s, self._leave)
        return self._sent

    def _leave(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._pending.set()

    async def run(self) -> None:
        """Send for ever; frames are sent again until the queue has answered, which is harmless."""
        while True:
            await self._pending.wait()
            self._pending.clear()
            if self._frames:
                await self._flush()

    async def flush(self) -> None:
        """Return when all that was put has been sent; nothing waits any longer."""
        self._leave()
        while self._sending is not None or self._frames:
            await asyncio.shield(self._sending or self._sent)

    async def _flush(self) -> None:
        frames, self._frames = list(self._frames.values()), {}
        sent = self._sending = self._sent
        self._sent = asyncio.get_running_loop().create_future()
        for call in _first_tokens_apart(frames):
            for frame, accepted in zip(call, await self._emit(call), strict=True):
                if not accepted:
                    self._rejected(frame.id)
        self._sending = None
        sent.set_result(None)

    async def _emit(self, frames: list[Frame]) -> list[bool]:
        while True:
            try:
                return list(await self._bus.emit(self._worker, frames, self._busy_until_s()))
            except BusUnavailable:
                await asyncio.sleep(RETRY_S)
            except BusError as error:
                log.error("frames refused", error=str(error), frames=len(frames))
                return [False] * len(frames)


def _first_tokens_apart(frames: list[Frame]) -> list[list[Frame]]:
    """The frames of each call; what begins an answer leaves before many frames of others."""
    first = [frame for frame in frames if frame.position == 0]
    rest = [frame for frame in frames if frame.position > 0]
    return [first, rest] if first and len(rest) > FEW else [frames]


def _joined(first: Frame, second: Frame) -> Frame:
    """Two frames of one request as one."""
    return replace(
        second,
        position=first.position,
        tokens=first.tokens + second.tokens,
        notes={**first.notes, **second.notes},
    )
