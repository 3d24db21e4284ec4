"""What :class:`common.bus.memory.MemoryBus` keeps: records, waiting lists, logs, and who waits for news of them."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from common.bus.interface import Cursor
from common.messages import Decision, End, Record, Request, State, Work

T = TypeVar("T")


@dataclass(slots=True)
class Stored:
    """One request's state while it changes; see :class:`common.messages.Record` for what it means."""

    request: Request
    entry: int
    state: State = State.QUEUED
    attempt: int = 1
    deaths: int = 0
    reported: int = 0
    generated: list[int] = field(default_factory=list)
    decision: Decision | None = None
    deferred_s: float | None = None
    end: End | None = None
    notes: dict[str, float] = field(default_factory=dict)
    prefill_worker: str | None = None
    decode_worker: str | None = None
    holder: str | None = None
    work: Work | None = None

    def snapshot(self) -> Record:
        """The record as others see it now."""
        return Record(
            request=self.request,
            state=self.state,
            attempt=self.attempt,
            decision=self.decision,
            generated=tuple(self.generated),
            end=self.end,
            notes=dict(self.notes),
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
        )


@dataclass(slots=True)
class Waiting:
    """One entry of a tier; ``planner`` holds it, None if nobody does."""

    request_id: str
    planner: str | None = None
    deliveries: int = 0


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


def names(*workers: str | None) -> Iterable[str]:
    """The given names, each once, without None."""
    return dict.fromkeys(worker for worker in workers if worker)
