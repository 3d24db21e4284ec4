"""One slice of an offline batch: sends its lines through the pipeline and keeps what comes back.

A slice may end anywhere, by time, signal or death, and the next one goes on: lines are submitted in order under ids
that never change, so a line that was submitted before is only waited for; results are kept by line number.
"""

import asyncio
from collections.abc import Coroutine
from enum import Enum
from typing import Any

from common.bus.interface import Submitted
from common.errors import BusError
from common.messages import End, State
from common.offline.batch import Fault, Status, request_id
from common.offline.batches import LockLost
from common.offline.closing import finish, withdraw
from common.offline.files import StoredFile
from common.offline.lines import Line, error_entry, survey
from common.offline.run import Call, LineRefused, Run, Tools

FIRST_POLL_S, LAST_POLL_S, POLL_GROWTH = 0.02, 1.0, 1.5
WATCH_S = 0.5
MAX_STARTS = 20
"""Runs in a row that may die or fail before a batch is given up."""


class Halt(Enum):
    """Why a slice stops before all lines are done."""

    SLICE_OVER = "slice over"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


_ENDS = {None: Status.COMPLETED, Halt.CANCELLED: Status.CANCELLED, Halt.EXPIRED: Status.EXPIRED}


async def run_slice(batch_id: str, tools: Tools) -> bool:
    """Work on a batch for one slice, unless another task does; True if it must be run again."""
    fence = await tools.batches.acquire(batch_id)
    if fence is None:
        return False
    clean = False
    try:
        batch = await tools.batches.load(batch_id)
        again = batch is not None and not batch.status.ended and await _Slice(Run(batch, fence, tools)).work()
        clean = True
        return again
    except LockLost:
        return False
    finally:
        await tools.batches.release(batch_id, fence, clean)


class _Slice:
    def __init__(self, run: Run) -> None:
        self._run, self._tools, self._id = run, run.tools, run.spec.id
        self._halt: asyncio.Future[Halt] = asyncio.get_running_loop().create_future()
        self._slots = asyncio.Semaphore(run.tools.settings.batch_concurrency)
        if run.batch.status is Status.CANCELLING:
            self._halt.set_result(Halt.CANCELLED)

    async def work(self) -> bool:
        """Until nothing is left or something halts it; True if it must be run again."""
        run = self._run
        if run.batch.starts > MAX_STARTS:
            await run.give_up(Fault("internal_error", f"{MAX_STARTS} runs in a row did not come to an end."))
            return False
        watch = asyncio.create_task(self._watch())
        try:
            return await self._steps(await self._tools.files.get(run.spec.tenant, run.spec.input_file_id))
        finally:
            await _stop(watch)

    async def _steps(self, file: StoredFile | None) -> bool:
        status, halt = self._run.batch.status, None
        if status is not Status.FINALIZING:
            if file is None:
                await self._run.give_up(Fault("file_not_found", "The input file was deleted or has expired."))
                return False
            if status is Status.VALIDATING and not await self._validate(file):
                return False
            halt = await self._until_halt(self._pump(file))
            if halt is Halt.LOST or halt is Halt.SLICE_OVER:
                return halt is Halt.SLICE_OVER
            if halt is not None:
                await withdraw(self._run, file, _ENDS[halt])
        return not await finish(self._run, _ENDS[halt])

    async def _watch(self) -> None:
        """Keep the lock, and find out whether to stop."""
        tools, started_s = self._tools, self._tools.clock()
        halt = None
        while halt is not Halt.LOST:
            try:
                await tools.batches.renew(self._id, self._run.fence)
                halt = await self._reason(tools.clock() - started_s)
            except (LockLost, BusError):
                halt = Halt.LOST
            if halt is not None and not self._halt.done():
                self._halt.set_result(halt)
            await asyncio.sleep(min(WATCH_S, tools.settings.batch_lock_s / 4))

    async def _reason(self, ran_s: float) -> Halt | None:
        batch = await self._tools.batches.load(self._id)
        if batch is None:
            return Halt.LOST
        if batch.status is Status.CANCELLING:
            return Halt.CANCELLED
        if self._tools.clock() >= batch.spec.expires_s:
            return Halt.EXPIRED
        return Halt.SLICE_OVER if self._tools.stopping() or ran_s >= self._tools.settings.batch_slice_s else None

    async def _until_halt(self, work: Coroutine[Any, Any, None]) -> Halt | None:
        """Run to the end (None) or until halted; raises what the work raised."""
        task = asyncio.create_task(work)
        try:
            waiting: set[asyncio.Future[Any]] = {task, self._halt}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _stop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise _first(error)
        return self._halt.result() if self._halt.done() else None

    async def _validate(self, file: StoredFile) -> bool:
        settings, spec = self._tools.settings, self._run.spec
        lines = self._tools.files.lines(file)
        found = await survey(lines, spec.endpoint, settings.batch_max_lines, settings.max_body_bytes)
        if found.fault is not None:
            await self._run.give_up(found.fault)
            return False
        for number, bad in found.bad.items():
            await self._run.keep(number, error_entry(spec, number, bad), ok=False)
        # a batch that was cancelled meanwhile stays so, and the watch sees it
        total = {"total": found.total}
        await self._tools.batches.move(spec.id, (Status.VALIDATING,), Status.IN_PROGRESS, self._run.fence, total)
        return True

    async def _pump(self, file: StoredFile) -> None:
        async with asyncio.TaskGroup() as group:
            async for number, line in self._run.open_lines(file):
                await self._slots.acquire()
                if self._halt.done():
                    return
                call = await self._submit(number, line)
                if call is None:
                    self._slots.release()
                else:
                    group.create_task(self._collect(number, line, call))

    async def _submit(self, number: int, line: Line) -> Call | None:
        """Put a line into its queue, waiting for room; None if the endpoint refuses it."""
        try:
            call = await self._tools.endpoint.call(self._run.spec, request_id(self._id, number), line.body)
        except LineRefused as refusal:
            await self._run.respond(number, line, refusal.status, refusal.body)
            return None
        wait_s = FIRST_POLL_S
        while await self._tools.bus.submit(call.request, call.max_queued) is Submitted.FULL:
            if self._halt.done():
                return None
            await asyncio.sleep(wait_s)
            wait_s = min(LAST_POLL_S, wait_s * POLL_GROWTH)
        return call

    async def _collect(self, number: int, line: Line, call: Call) -> None:
        """Wait for the end of a line and keep its response."""
        bus, wait_s = self._tools.bus, FIRST_POLL_S
        while (record := await bus.record(call.request.id)) is not None and not record.state.ended:
            if self._halt.done():
                return
            if call.stopped(record):
                await bus.end(call.request.id, End(State.DONE, "stop"))
            await asyncio.sleep(wait_s)
            wait_s = min(LAST_POLL_S, wait_s * POLL_GROWTH)
        await self._run.settle(number, line, call, record)
        self._slots.release()


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel until it has ended: redis-py can lose a cancellation that comes together with a reply."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


def _first(error: BaseException) -> BaseException:
    """The first single error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
