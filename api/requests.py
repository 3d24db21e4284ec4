"""``GET`` and ``DELETE /requests/{id}``."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import JSONResponse, Response

from api.auth import Tenant
from api.outcome import decision_body, usage_body
from api.problems import Problem, ProblemError
from common.bus.interface import IngressBus
from common.messages import Decision, End, Record, State

CANCELLED_BY_CLIENT = "cancelled_by_client"
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

router = APIRouter(prefix="/requests", tags=["requests"])
RequestId = Annotated[str, Path(description="from x-request-id or the answer", examples=["req-0f3a"])]


async def get_bus(request: Request) -> IngressBus:
    """The queue."""
    bus: IngressBus = request.app.state.bus
    return bus


Queue = Annotated[IngressBus, Depends(get_bus)]


@router.get("/{request_id}", summary="What became of a request")
async def look_up(request_id: RequestId, tenant: Tenant, bus: Queue) -> dict[str, Any]:
    """State, decision record, timings and usage; 404 once its retention is over."""
    return record_body(await _found(bus, request_id, tenant))


@router.delete("/{request_id}", summary="Cancel a request", responses={409: {"description": "it has ended"}})
async def cancel(request_id: RequestId, tenant: Tenant, bus: Queue) -> Response:
    """Ends it everywhere and frees what it holds; whoever waits for its answer is told."""
    await _found(bus, request_id, tenant)
    if not await bus.end(request_id, End(State.CANCELLED, CANCELLED_BY_CLIENT)):
        record = await _found(bus, request_id, tenant)
        extra = {"request_id": request_id, "state": record.state.value}
        raise ProblemError(Problem(409, "already_ended", "The request has ended.", extra=extra))
    return JSONResponse({"request_id": request_id, "state": State.CANCELLED.value})


def record_body(record: Record) -> dict[str, Any]:
    """A record as JSON, without prompt and answer. Times are seconds of the Unix epoch."""
    request, decision, end = record.request, record.decision, record.end
    return {
        "request_id": request.id,
        "state": record.state.value,
        "tier": request.tier,
        "attempt": record.attempt,
        "arrival_s": request.arrival_s,
        "session_id": request.session_id,
        "decision": _decision(decision),
        "objective": None
        if decision is None
        else {
            "ttft_ms": decision.ttft_ms,
            "tpot_ms": decision.tpot_ms,
            "thinking_tpot_ms": decision.thinking_tpot_ms,
        },
        "predicted": None
        if decision is None
        else {"ttft_ms": decision.predicted_ttft_ms, "tpot_ms": decision.predicted_tpot_ms},
        "prefill_worker": record.prefill_worker,
        "decode_worker": record.decode_worker,
        "timings": dict(record.notes),
        "usage": usage_body(len(request.prompt), len(record.generated)),
        "end": None if end is None else {"state": end.state.value, "reason": end.reason},
    }


async def _found(bus: IngressBus, request_id: str, tenant: str) -> Record:
    record = await bus.record(request_id) if _ID.fullmatch(request_id) else None
    # somebody else's request is as unknown as one that never was
    if record is None or record.request.tenant != tenant:
        raise ProblemError(Problem(404, "request_not_found", "No such request, or its retention is over."))
    return record


def _decision(decision: Decision | None) -> dict[str, Any] | None:
    """The decision with what it was made from."""
    body = decision_body(decision)
    if decision is None or body is None:
        return None
    return {**body, "retry_after_s": decision.retry_after_s, "inputs": dict(decision.inputs)}
