"""``/healthz``, ``/readyz`` and ``/metrics``: never traced, never behind authentication."""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from api.state import ingress_of
from common.bus.interface import Bus
from common.errors import BusError
from common.health import check
from common.messages import Stage, WorkerState
from common.telemetry import metrics

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Whether the process is alive")
async def healthz() -> Response:
    """200 as long as the event loop turns."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", summary="Whether requests can be served")
async def readyz(request: Request) -> Response:
    """200 once the queue answers, a planner leads and knows a worker of each kind, and requests of the api's own
    have ended, however they went; else 503 and what is missing."""
    state = request.app.state

    async def checks() -> Mapping[str, bool]:
        found = await readiness(state.bus)
        here = {"accepting": not state.drain.draining, "relay": ingress_of(request).relay.reading.is_set()}
        return {**here, **found, "rehearsed": state.rehearsal.done}

    results = await check(checks)
    missing = [name for name, holds in results.items() if not holds]
    body = {"ready": not missing, "missing": missing, "checks": results}
    return JSONResponse(body, status_code=503 if missing else 200)


@router.get("/metrics", summary="Prometheus metrics")
async def metrics_page() -> Response:
    """The text format."""
    page, content_type = metrics.render()
    return Response(page, headers={"content-type": content_type})


async def readiness(bus: Bus) -> Mapping[str, bool]:
    """What is live beyond this process. A worker counts for the stage that it prefers, if it may do it."""
    nothing = {"queue": False, "planner": False, "prefill_worker": False, "decode_worker": False}
    try:
        await bus.ping()
        leader, workers = await bus.leader(), await bus.workers()
    except BusError:
        return nothing
    stages = {stage for worker in workers.values() if worker is not None for stage in _serves(worker)}
    return {
        "queue": True,
        "planner": leader is not None,
        "prefill_worker": Stage.PREFILL in stages,
        "decode_worker": Stage.DECODE in stages,
    }


def _serves(worker: WorkerState) -> tuple[Stage, ...]:
    up = worker.ready and worker.known and not worker.draining and worker.prefers in worker.may
    return (worker.prefers,) if up else ()
