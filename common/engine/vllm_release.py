"""Frees KV that nobody will pull, and stays at hand for a consumer that had begun to."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

_PROGRESS_S = 5.0
_PERIOD_S = 0.05


class Releases:
    """Releases of one producer.

    NIXL moves data only while the producer's engine core runs a step (it has no progress thread on a CPU), and an
    idle one that holds nothing runs none: a pull under way would hang, and with it the consumer's blocks. So the
    core is made to look after transfers for a while after each release. ``call`` runs a method of the worker.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call
        self._until_s = 0.0
        self._progress: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def release(self, request_id: str) -> None:
        """Free what a finished request holds."""
        await self._call("slos_release", request_id)
        self._keep_going()

    def release_job(self, prefix: str) -> None:
        """Free what requests whose id begins so hold, in the background; aborted ones hold nothing."""
        task = asyncio.get_running_loop().create_task(self._release_job(prefix))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop what runs in the background."""
        tasks = {*self._tasks, *([self._progress] if self._progress else [])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _release_job(self, prefix: str) -> None:
        with contextlib.suppress(Exception):  # an engine that is gone holds nothing
            await self._call("slos_release_job", prefix)
            self._keep_going()

    def _keep_going(self) -> None:
        self._until_s = time.monotonic() + _PROGRESS_S
        if self._progress is None or self._progress.done():
            self._progress = asyncio.get_running_loop().create_task(self._make_progress())

    async def _make_progress(self) -> None:
        with contextlib.suppress(Exception):  # an engine that is gone moves nothing
            while time.monotonic() < self._until_s:
                await self._call("slos_progress")
                await asyncio.sleep(_PERIOD_S)
