"""How a batch ends: its lines withdrawn where it was cut short, its files written, its status final."""

from collections.abc import AsyncIterator

from common.messages import End, Record, State
from common.offline.batch import Status, error_file, output_file, request_id
from common.offline.files import StoredFile
from common.offline.run import Run

RESULTS_AT_A_TIME = 256
_RUNNING = (Status.VALIDATING, Status.IN_PROGRESS)
_CUT_SHORT = {Status.CANCELLED: State.CANCELLED, Status.EXPIRED: State.EXPIRED}


async def withdraw(run: Run, file: StoredFile, end: Status) -> None:
    """End what is in the pipeline, keep what is done; of an expired batch every other line gets an error."""
    submitted = True
    async for number, line in run.open_lines(file):
        name = request_id(run.spec.id, number)
        record = await _ended(run, name, _CUT_SHORT[end]) if submitted else None
        submitted = record is not None  # lines are submitted in order
        if record is not None and record.state not in (State.CANCELLED, State.EXPIRED):
            await run.settle(number, line, await run.tools.endpoint.call(run.spec, name, line.body), record)
        elif end is Status.EXPIRED:
            message = "The batch's completion window ended before this line was done."
            await run.refuse(number, line, "batch_expired", message)
        elif not submitted:
            return


async def finish(run: Run, end: Status) -> bool:
    """Write the files and end the batch; False if it was cancelled just now and must be run again."""
    batches, spec = run.tools.batches, run.spec
    expected = {*_RUNNING, Status.FINALIZING, Status.CANCELLING}
    if end is Status.COMPLETED:
        if run.batch.status is not Status.FINALIZING and not await batches.move(
            spec.id, _RUNNING, Status.FINALIZING, run.fence
        ):
            return False
        expected = {Status.FINALIZING}
    fields: dict[str, str | bytes | int] = {}
    for ok, name, file_id in ((True, "output", output_file(spec.id)), (False, "error", error_file(spec.id))):
        if await _write_file(run, ok, file_id, f"{spec.id}_{name}.jsonl"):
            fields[f"{name}_file_id"] = file_id
    return await batches.move(spec.id, expected, end, run.fence, fields)


async def _ended(run: Run, name: str, state: State) -> Record | None:
    """The record of a line after ending it, None if the line was never submitted."""
    bus = run.tools.bus
    record = await bus.record(name)
    if record is not None and not record.state.ended:
        await bus.end(name, End(state, "batch_" + state.value))
        record = await bus.record(name)
    return record


async def _write_file(run: Run, ok: bool, file_id: str, name: str) -> bool:
    batches, spec = run.tools.batches, run.spec
    numbers = await batches.lines(spec.id, ok)
    if not numbers:
        return False

    async def content() -> AsyncIterator[bytes]:
        for first in range(0, len(numbers), RESULTS_AT_A_TIME):
            await batches.renew(spec.id, run.fence)
            yield b"".join(await batches.results(spec.id, ok, numbers[first : first + RESULTS_AT_A_TIME]))

    await run.tools.files.write(file_id, spec.tenant, name, content())
    return True
