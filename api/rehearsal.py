"""Requests of an api's own, which run through the whole pipeline before it calls itself ready.

What runs for the first time is slow, in every process on the way: the first request after a start took 105 ms to its
first token where the fourth took 32. No user's promise should be broken by that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from api.generate import intake, new_id, stream
from api.ingress import Ingress
from api.intake import Sender
from api.problems import ProblemError
from api.schemas import GenerateBody
from common.errors import BusError
from common.telemetry.logs import get_logger

TENANT = "rehearsal"
"""Whose requests these are, in records and traces."""

POLL_S = 0.1
LONGEST_S = 20.0
"""A request that takes longer is given up: others are being served, so the pipeline is warm, or it never gets so."""

BODY = {
    "prompt": "To be or not to be",
    "max_tokens": 4,
    "slo": {"ttft_ms": LONGEST_S * 1e3, "tpot_ms": LONGEST_S * 1e3},
    "on_overload": "reject",
    "ignore_eos": True,
}

log = get_logger(__name__)


class Rehearsal:
    """``count`` requests, once in a process; ``done`` says that they are over, however they went."""

    def __init__(self, ingress: Ingress, count: int) -> None:
        self.done = count == 0
        self._ingress = ingress
        self._count = count
        self._running: asyncio.Task[None] | None = None

    def start(self, readiness: Callable[[], Awaitable[Mapping[str, bool]]]) -> None:
        """In the background, wait until nothing is missing in ``readiness``, then send one request after the other."""
        self._running = asyncio.create_task(self._run(readiness))

    async def stop(self) -> None:
        """Cancel what runs of it."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self, readiness: Callable[[], Awaitable[Mapping[str, bool]]]) -> None:
        await self._ingress.relay.reading.wait()
        while not all((await readiness()).values()):
            await asyncio.sleep(POLL_S)
        for _ in range(self._count):
            try:
                async with asyncio.timeout(LONGEST_S):
                    await self._one()
            except (ProblemError, BusError, TimeoutError) as error:
                log.info("a rehearsal was not served", error=str(error) or type(error).__name__)
            except Exception:
                log.exception("a rehearsal failed")
        self.done = True

    async def _one(self) -> None:
        ingress = self._ingress
        sender = Sender(TENANT, ingress.clock(), ingress.relay.api)
        prepared = await intake(new_id(), GenerateBody.model_validate(BODY), sender, ingress.context)
        exchange = await ingress.submit(prepared)
        try:
            async for _ in stream(exchange, ingress.settings.keep_alive_s):
                pass
        finally:
            exchange.close()
