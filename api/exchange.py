"""One request's answer on its way: replies in, pieces out, and an end in every case."""

import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from api.delivery import Delivery, Gap, Piece
from api.intake import Prepared
from api.relay import Arrival, Waiter
from common.bus.interface import Submitted
from common.errors import BusError, CodecError
from common.messages import Decision, End, Frame, Record, Request, State
from common.telemetry import metrics

if TYPE_CHECKING:
    from api.ingress import Ingress

Update = Decision | Piece | None
"""A new decision, new tokens, or None when nothing has come for a while."""


class Exchange:
    """Iterate :meth:`updates` until it ends, or let :meth:`wait` do so; then, or instead, :meth:`close`."""

    def __init__(self, ingress: "Ingress", prepared: Prepared, waiter: Waiter) -> None:
        self.request: Request = prepared.request
        self.delivery = Delivery(prepared, ingress.context)
        self._ingress = ingress
        self._prepared = prepared
        self._waiter = waiter
        self._pending: deque[Decision | Piece] = deque()
        self._checked_s = time.monotonic()
        self._closed = False
        self._told_workers = False

    @property
    def last_sent(self) -> bool:
        """Whether it has ended and the update that was given last is the last one."""
        return self.delivery.end is not None and not self._pending

    async def started(self, timeout_s: float) -> None:
        """Return once there is something to tell the client, or it has ended, or time is up."""
        until_s = time.monotonic() + timeout_s
        while not self._pending and self.delivery.end is None and (left_s := until_s - time.monotonic()) > 0:
            await self._receive(left_s)

    async def updates(self, idle_s: float) -> AsyncIterator[Update]:
        """Everything that comes, until the end; None after each ``idle_s`` of silence."""
        quiet_since_s = time.monotonic()
        while True:
            while self._pending:
                yield self._pending.popleft()
                quiet_since_s = time.monotonic()
            if self.delivery.end is not None:
                return
            await self._receive(max(0.0, quiet_since_s + idle_s - time.monotonic()))
            if not self._pending and self.delivery.end is None and time.monotonic() >= quiet_since_s + idle_s:
                yield None
                quiet_since_s = time.monotonic()

    async def wait(self) -> None:
        """Return when it has ended."""
        async for _ in self.updates(self._ingress.check_s):
            pass

    def fail(self, end: End) -> None:
        """End it from this process, at once; whoever waits for it is told, and so are the workers."""
        self.delivery.fail(end, self._ingress.clock())
        self._tell_workers(end)
        self._waiter.wake()

    def close(self, reason: str = "client_disconnected") -> None:
        """Must be called once nobody listens any more: cancels what has not ended. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self.delivery.end is None:
            self.fail(End(State.CANCELLED, reason))
        self._ingress.closed(self)

    async def _receive(self, timeout_s: float) -> None:
        """Take one reply, or look for what may have been lost when none has come for long."""
        check_in_s = self._checked_s + self._ingress.check_s - time.monotonic()
        arrival = await self._waiter.next(min(timeout_s, max(0.0, check_in_s)))
        if arrival is not None:
            self._checked_s = time.monotonic()
            await self._take(arrival)
        elif time.monotonic() >= self._checked_s + self._ingress.check_s:
            await self._reconcile()

    async def _take(self, arrival: Arrival) -> None:
        reply, before = arrival.reply, self.delivery.decision
        if reply is None:
            return
        try:
            piece = self.delivery.take(reply, arrival.came_s)
        except Gap:
            if await self._reconcile() and self.delivery.behind(reply):
                self.fail(End(State.FAILED, "tokens_lost"))
            return
        if isinstance(reply, Frame):
            metrics.RELAY_S.observe(max(0.0, self._ingress.clock() - reply.time_s))
        self._note(before, piece)

    async def _reconcile(self) -> bool:
        """Catch up with the durable record; False if the queue does not answer."""
        self._checked_s = time.monotonic()
        before = self.delivery.decision
        try:
            record: Record | None = await self._ingress.bus.record(self.request.id)
            if record is None:
                await self._submit_again()
                return True
        except BusError:
            return False
        except CodecError:
            self.fail(End(State.FAILED, "record_lost"))
            return True
        self._note(before, self.delivery.catch_up(record, self._ingress.clock()))
        return True

    async def _submit_again(self) -> None:
        """The queue lost the request with its newest writes: that is made good as long as nothing was sent."""
        if not self.delivery.tokens:
            outcome = await self._ingress.bus.submit(self.request, self._prepared.max_queued)
            if outcome is not Submitted.FULL:
                return
        self.fail(End(State.FAILED, "record_lost"))

    def _note(self, before: Decision | None, piece: Piece | None) -> None:
        if self.delivery.decision is not None and self.delivery.decision != before:
            self._pending.append(self.delivery.decision)
        if piece is not None:
            self._pending.append(piece)
        if self.delivery.stopped and self.delivery.end is not None:
            self._tell_workers(self.delivery.end)

    def _tell_workers(self, end: End) -> None:
        if not self._told_workers:
            self._told_workers = True
            self._ingress.end_soon(self.request.id, end)
