"""An in-memory queue that can be away, out of memory, or lose what it was given."""

from collections.abc import Callable, Sequence

from common.bus.interface import Cursor, Submitted
from common.bus.memory import MemoryBus
from common.errors import BusError, BusFull, BusUnavailable
from common.messages import Frame, Record, Reply, Request


class FaultyBus(MemoryBus):
    """Its faults are switches that a test may turn at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.down: type[BusError] | None = None
        self.submit_answers = True
        self.record_answers = True
        self.loses: Callable[[Reply], bool] = lambda reply: False
        self.forgets: set[str] = set()

    async def submit(self, request: Request, max_queued: int) -> Submitted:
        self._check()
        outcome = await super().submit(request, max_queued)
        if not self.submit_answers:
            raise BusUnavailable("the connection was lost after the write")
        return outcome

    async def replies(self, api: str, after: Cursor, block_s: float) -> tuple[Cursor, Sequence[Reply]]:
        self._check(reading=True)
        cursor, replies = await super().replies(api, after, min(block_s, 0.02))
        self._check(reading=True)
        return cursor, [reply for reply in replies if not self.loses(reply)]

    async def record(self, request_id: str) -> Record | None:
        self._check()
        if not self.record_answers:
            raise BusUnavailable("no connection")
        return None if request_id in self.forgets else await super().record(request_id)

    async def ping(self) -> None:
        self._check()

    def _check(self, reading: bool = False) -> None:
        if self.down is not None and not (reading and self.down is BusFull):
            raise self.down("down")


def frame_at(position: int) -> Callable[[Reply], bool]:
    """True for the frame with that position."""
    return lambda reply: isinstance(reply, Frame) and reply.position == position


def is_end(reply: Reply) -> bool:
    """True for the frame that ends a request."""
    return isinstance(reply, Frame) and reply.end is not None
