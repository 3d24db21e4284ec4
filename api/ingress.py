"""The way of a prepared request into the queue, and of its answer back to whoever waits for it."""

import asyncio
import math
import socket
import time
import uuid
from collections.abc import Awaitable, Callable

from api import report
from api.context import Context
from api.exchange import Exchange
from api.intake import Prepared, with_trace
from api.problems import Problem, ProblemError, unavailable
from api.relay import Relay
from common.bus.interface import IngressBus, QueueDepth, Submitted
from common.errors import BusError, BusFull, BusUnavailable
from common.messages import End, State
from common.settings import Settings
from common.telemetry import metrics
from common.telemetry.logs import get_logger

DEPTHS_S = 1.0
"""Between two looks at the queues; a refusal by predicted wait may be this much out of date."""

CHECK_S = 5.0
"""After this long without a reply to it, a request's durable record is read, in case a reply was lost."""

LONGEST_RETRY_AFTER_S = 60.0
END_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

log = get_logger(__name__)


class Ingress:
    """One per api replica; :meth:`start` and :meth:`stop` run its background tasks."""

    def __init__(
        self,
        bus: IngressBus,
        context: Context,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bus = bus
        self.context = context
        self.check_s = CHECK_S
        self.settings = settings
        self.clock = clock
        self.relay = Relay(bus, f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}", clock)
        self._exchanges: set[Exchange] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._depths: dict[str, QueueDepth] = {}

    def start(self) -> None:
        """Begin to read replies."""
        self._loops = [asyncio.create_task(self.relay.run()), asyncio.create_task(self._watch_depths())]

    async def stop(self) -> None:
        """Finish what was begun in the background, within five seconds, and stop."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in (*self._loops, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._loops, *self._tasks, return_exceptions=True)

    @property
    def open(self) -> int:
        """Answers that are being delivered."""
        return len(self._exchanges)

    async def submit(self, prepared: Prepared) -> Exchange:
        """Put a request into its tier's queue; raises ProblemError 429 or 503 with Retry-After if that can't be."""
        request = prepared.request
        self._refuse_hopeless(prepared)
        with report.sending(request) as carrier:
            prepared = with_trace(prepared, carrier)
            waiter = self.relay.open(request.id)
            try:
                await self._submit(prepared)
            except BaseException:
                self.relay.close(request.id)
                raise
        exchange = Exchange(self, prepared, waiter)
        self._exchanges.add(exchange)
        report.accepted(prepared, self.context.facts.served_name)
        return exchange

    def closed(self, exchange: Exchange) -> None:
        """Called by an exchange that has ended, for whatever reason."""
        self._exchanges.discard(exchange)
        self.relay.close(exchange.request.id)
        outcome = report.finished(exchange.delivery, self.context.facts.served_name)
        if outcome.attained is False:
            self.background(report.keep_trace(self.bus, exchange.request.trace, exchange.delivery.decision))

    def abandon(self, end: End) -> None:
        """End everything that is open, because this process must go."""
        for exchange in list(self._exchanges):
            exchange.fail(end)

    def end_soon(self, request_id: str, end: End) -> None:
        """End a request in the queue, trying again while that does not answer."""
        self.background(self._end(request_id, end))

    def background(self, work: Awaitable[None]) -> None:
        """Run to its end whatever becomes of the caller."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _submit(self, prepared: Prepared) -> None:
        request = prepared.request
        try:
            outcome = await self._submit_twice(prepared)
        except BusFull:
            metrics.REFUSED.labels(request.tier, "queue_memory").inc()
            raise unavailable("The queue is out of memory.", "queue_out_of_memory") from None
        except BaseException as error:
            # it may have got in although the answer was lost, or the client is gone
            self.end_soon(request.id, End(State.CANCELLED, "never_answered"))
            if not isinstance(error, BusError):
                raise
            metrics.REFUSED.labels(request.tier, "queue_unavailable").inc()
            raise unavailable("The queue does not answer.") from None
        if outcome is Submitted.FULL:
            metrics.REFUSED.labels(request.tier, "queue_full").inc()
            raise self._full(prepared, f"The queue of tier {request.tier!r} is full.", "queue_full")

    async def _submit_twice(self, prepared: Prepared) -> Submitted:
        try:
            return await self.bus.submit(prepared.request, prepared.max_queued)
        except BusUnavailable:
            return await self.bus.submit(prepared.request, prepared.max_queued)

    def _refuse_hopeless(self, prepared: Prepared) -> None:
        tier, wait_s = prepared.request.tier, self.wait_s(prepared.request.tier)
        if wait_s * 1000 > prepared.request.patience_ms:
            metrics.REFUSED.labels(tier, "wait_over_patience").inc()
            detail = f"The queue of tier {tier!r} has waited for {wait_s:.0f} s, longer than its patience."
            raise self._full(prepared, detail, "wait_over_patience")

    def _full(self, prepared: Prepared, detail: str, code: str) -> ProblemError:
        retry_s = min(max(1.0, self.wait_s(prepared.request.tier)), LONGEST_RETRY_AFTER_S)
        extra = {"request_id": prepared.request.id, "tier": prepared.request.tier}
        return ProblemError(Problem(429, code, detail, retry_after_s=math.ceil(retry_s), extra=extra))

    def wait_s(self, tier: str) -> float:
        """How long a new request will wait: by Little's law about as long as the oldest one has."""
        depth = self._depths.get(tier)
        if depth is None or depth.oldest_arrival_s is None:
            return 0.0
        return max(0.0, self.clock() - depth.oldest_arrival_s)

    async def _watch_depths(self) -> None:
        while True:
            try:
                self._depths = dict(await self.bus.depths(self.context.tiers.names))
            except BusError:
                self._depths = {}
            await asyncio.sleep(DEPTHS_S)

    async def _end(self, request_id: str, end: End) -> None:
        for pause_s in END_RETRY_S:
            try:
                await self.bus.end(request_id, end)
            except BusUnavailable:
                await asyncio.sleep(pause_s)
            else:
                return
        log.error("a request could not be ended; its worker will run it to its end", request_id=request_id)
