"""One reader per api replica: passes what comes on its reply stream to whoever waits for it."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from common.bus.interface import START, Cursor, IngressBus
from common.errors import SlosError
from common.messages import Frame, Reply
from common.telemetry.logs import get_logger

BLOCK_S = 1.0
FIRST_BLOCK_S = 0.01
AT_ONCE = 3
"""Replies that are passed on before new requests get their turn: the tokens of a step take milliseconds."""
RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A reply and when it came; None where the waiter was only woken."""

    reply: Reply | None
    came_s: float


class Waiter:
    """Replies of one request in the order of the stream, for one reader.

    A queue and a timeout of asyncio do the same at twice the cost, which is paid for each token.
    """

    def __init__(self) -> None:
        self._arrivals: deque[Arrival] = deque()
        self._news: asyncio.Future[None] | None = None

    def put(self, reply: Reply, now_s: float) -> None:
        """Called by the relay; bounded by the request's own ``max_tokens``."""
        self._arrivals.append(Arrival(reply, now_s))
        self._tell()

    def wake(self) -> None:
        """Make :meth:`next` return although no reply came."""
        self._arrivals.append(Arrival(None, 0.0))
        self._tell()

    async def next(self, timeout_s: float) -> Arrival | None:
        """The next reply, None if none comes in time."""
        if not self._arrivals:
            loop = asyncio.get_running_loop()
            self._news = loop.create_future()
            timer = loop.call_later(max(0.0, timeout_s), self._tell)
            try:
                await self._news
            finally:
                timer.cancel()
                self._news = None
        return self._arrivals.popleft() if self._arrivals else None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class Relay:
    """Open a waiter before submitting its request, so that no reply can come before it."""

    def __init__(self, bus: IngressBus, api: str, clock: Callable[[], float]) -> None:
        self.api = api
        self.reading = asyncio.Event()
        """Set while the queue answers."""
        self._bus = bus
        self._clock = clock
        self._waiters: dict[str, Waiter] = {}

    def open(self, request_id: str) -> Waiter:
        """Begin to wait for a request's replies."""
        waiter = self._waiters[request_id] = Waiter()
        return waiter

    def close(self, request_id: str) -> None:
        """Replies to this request interest nobody any more."""
        self._waiters.pop(request_id, None)

    @property
    def waiting(self) -> Iterable[str]:
        """Ids of the requests that somebody waits for."""
        return self._waiters.keys()

    async def run(self) -> None:
        """Read for ever. An outage loses nothing: the cursor stays, and reading goes on where it stopped."""
        cursor = START
        failures = 0
        try:
            while True:
                try:
                    cursor = await self._read(cursor)
                    failures = 0
                except SlosError as error:
                    self.reading.clear()
                    if failures == 0:
                        log.warning("the queue does not answer; waiting for it", error=type(error).__name__)
                    await asyncio.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                    failures += 1
        finally:
            self.reading.clear()

    async def _read(self, cursor: Cursor) -> Cursor:
        # the first read after an outage does not wait, so that readiness is known at once
        block_s = BLOCK_S if self.reading.is_set() else FIRST_BLOCK_S
        cursor, replies = await self._bus.replies(self.api, cursor, block_s)
        self.reading.set()
        now_s = self._clock()
        for number, reply in enumerate(_first_tokens_first(replies), start=1):
            waiter = self._waiters.get(reply.id)
            if waiter is not None:
                waiter.put(reply, now_s)
            if number % AT_ONCE == 0 or number == len(replies):  # to ask again takes longer than to pass on
                await asyncio.sleep(0)
        return cursor


def _first_tokens_first(replies: Sequence[Reply]) -> Sequence[Reply]:
    """What begins an answer goes before what continues one: a step of many sequences takes milliseconds to pass on.

    The order of each request's own replies stays.
    """
    first: dict[str, Reply] = {}
    for reply in replies:
        first.setdefault(reply.id, reply)
    return sorted(replies, key=lambda reply: isinstance(begun := first[reply.id], Frame) and begun.position > 0)
