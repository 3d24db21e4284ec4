"""Refitting the latency model to what engines measure."""

from common.calibration import refit
from common.celery_app import app, settings
from common.tasks.runtime import Connections, run_async
from common.telemetry.logs import get_logger

_log = get_logger(__name__)


@app.task(name="refit_latency")  # type: ignore[untyped-decorator]
def refit_latency() -> None:
    """Publish a fitted profile for every kind of engine that has measured enough steps."""

    async def work(connections: Connections) -> None:
        profiles = await refit(connections.redis, connections.keys, await connections.bus.workers())
        for profile in profiles.values():
            numbers = {"samples": profile.samples, "median_error": round(profile.error, 4)}
            _log.info("latency model refitted", kind=profile.kind, **numbers)

    run_async(settings, work)
