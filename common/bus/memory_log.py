"""Logs of the in-memory bus, their cursors, and who waits for news in them."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from common.bus.interface import Cursor

T = TypeVar("T")


class Log(Generic[T]):
    """Items in the order of a shared counter; its reader forgets what lies before its cursor."""

    def __init__(self, bound: int | None = None) -> None:
        self._items: deque[tuple[int, T]] = deque(maxlen=bound)

    def append(self, number: int, item: T) -> None:
        """Add an item; numbers only grow."""
        self._items.append((number, item))

    def forget(self, number: int) -> None:
        """Drop everything up to ``number``."""
        while self._items and self._items[0][0] <= number:
            self._items.popleft()

    def after(self, number: int) -> list[T]:
        """Items after ``number``, oldest first."""
        return [item for at, item in self._items if at > number]

    @property
    def last(self) -> int:
        """Number of the last item, 0 without any."""
        return self._items[-1][0] if self._items else 0


class Wakeups:
    """Lets readers wait for news of topics; whoever changes a topic wakes them."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def wake(self, topic: str) -> None:
        """Wake everyone who waits for this topic."""
        for future in self._waiting.pop(topic, ()):
            if not future.done():
                future.set_result(None)

    async def wait(self, topic: str, ready: Callable[[], bool], block_s: float) -> None:
        """Return once ``ready`` holds, at the latest after ``block_s``."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + block_s
        while not ready():
            left_s = until_s - loop.time()
            if left_s <= 0:
                return
            future: asyncio.Future[None] = loop.create_future()
            self._waiting[topic].add(future)
            try:
                await asyncio.wait([future], timeout=left_s)
            finally:
                self._waiting[topic].discard(future)
                if not self._waiting[topic]:
                    del self._waiting[topic]


def number_of(cursor: Cursor) -> int:
    """Where a cursor stands in a :class:`Log`."""
    return int(cursor.partition("-")[0])


def cursor_at(number: int) -> Cursor:
    """Inverse of :func:`number_of`."""
    return f"{number}-0"
