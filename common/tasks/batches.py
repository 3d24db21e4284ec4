"""Running offline batches, slice by slice, and resuming those whose task died."""

from common.celery_app import app, settings, stopping
from common.offline.run import Tools
from common.offline.runner import run_slice
from common.tasks.runtime import Connections, run_async
from common.telemetry.logs import get_logger

_log = get_logger(__name__)


@app.task(name="run_batch")  # type: ignore[untyped-decorator]
def run_batch(batch_id: str) -> None:
    """Work on a batch for one slice and queue the next; without effect while another task works on it."""
    from common.offline.endpoint import load_endpoint  # takes seconds and much memory: not in beat and the main process

    async def work(connections: Connections) -> bool:
        endpoint = load_endpoint(settings)
        tools = Tools(connections.batches, connections.files, connections.bus, endpoint, settings, stopping)
        again = await run_slice(batch_id, tools)
        batch = await connections.batches.load(batch_id)
        if batch is not None:
            counts = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
            _log.info("batch slice done", batch_id=batch_id, status=batch.status.value, **counts)
        return again

    if run_async(settings, work):
        run_batch.apply_async((batch_id,))


@app.task(name="resume_batches")  # type: ignore[untyped-decorator]
def resume_batches() -> None:
    """Queue every open batch that nobody works on: its message was lost, or its worker died."""

    async def stale(connections: Connections) -> list[str]:
        return [name for name in await connections.batches.open() if not await connections.batches.locked(name)]

    for batch_id in run_async(settings, stale):
        _log.info("batch resumed", batch_id=batch_id)
        run_batch.apply_async((batch_id,), expires=2 * settings.batch_lock_s)
