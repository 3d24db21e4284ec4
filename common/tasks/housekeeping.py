"""Forgetting what is past its retention, and reporting what was given up."""

import time
from collections import Counter

from common.celery_app import app, settings
from common.offline.batches import BatchStore
from common.tasks.runtime import Connections, run_async
from common.telemetry.logs import get_logger

SWEEP_AT_A_TIME = 1000
SWEEP_ROUNDS = 20
UNCOLLECTED_S = 60.0
"""A line's result is collected within this, while its batch is worked on."""

_log = get_logger(__name__)


@app.task(name="sweep_requests")  # type: ignore[untyped-decorator]
def sweep_requests() -> None:
    """Forget ended requests past their retention, but none whose batch may still want its result."""

    async def work(connections: Connections) -> int:
        older_than_s = await sweep_before_s(connections.batches, time.time() - settings.retention_s)
        total = 0
        for _ in range(SWEEP_ROUNDS):
            swept = await connections.bus.sweep(older_than_s, SWEEP_AT_A_TIME)
            total += swept
            if swept < SWEEP_AT_A_TIME:
                break
        return total

    _log.info("ended requests forgotten", count=run_async(settings, work))


async def sweep_before_s(batches: BatchStore, before_s: float) -> float:
    """The same time, or the earlier one since which results of an open batch may not have been collected."""
    for batch_id in await batches.open():
        batch = await batches.load(batch_id)
        if batch is not None and batch.beat_s is not None:
            before_s = min(before_s, batch.beat_s - UNCOLLECTED_S)
    return before_s


@app.task(name="sweep_offline")  # type: ignore[untyped-decorator]
def sweep_offline() -> None:
    """Forget files and batches past their retention."""

    async def work(connections: Connections) -> dict[str, int]:
        return {"batches": await connections.batches.sweep(), "files": await connections.files.sweep()}

    _log.info("offline work forgotten", **run_async(settings, work))


@app.task(name="report_dead_letters")  # type: ignore[untyped-decorator]
def report_dead_letters() -> None:
    """Log how many requests were given up, by reason."""

    async def work(connections: Connections) -> Counter[str]:
        return Counter(letter.reason for letter in await connections.bus.dead_letters(SWEEP_AT_A_TIME))

    reasons = run_async(settings, work)
    log = _log.warning if reasons else _log.info
    log("dead letters", count=reasons.total(), reasons=dict(reasons))
