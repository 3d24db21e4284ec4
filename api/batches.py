"""``/v1/batches``: requests without a deadline, as OpenAI's API has them."""

import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from api.auth import Tenant
from api.body import body_schema, read_json
from api.files import no_file, page_body
from api.offline import Offline, get_offline, lifespan
from api.problems import Problem, ProblemError, invalid_field
from api.schemas import Strict
from common.offline.batch import Batch, BatchSpec, Status
from common.offline.files import BATCH_INPUT, StoredFile
from common.settings import Settings

MAX_BODY_BYTES = 64 * 1024
READ_AGAIN_S = 300.0
"""A batch ends this long before its input file is forgotten, so that it can still be read."""

_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
_EXAMPLE = {"input_file_id": "file-abc", "endpoint": "/v1/chat/completions", "completion_window": "24h"}

router = APIRouter(prefix="/v1/batches", tags=["batches"], lifespan=lifespan)
Stores = Annotated[Offline, Depends(get_offline)]


class BatchBody(Strict):
    """Body of ``POST /v1/batches``."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=256)]
    endpoint: Literal["/v1/completions", "/v1/chat/completions"]
    completion_window: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}[mhd]$")] = Field(
        description="how long the batch may take, such as 24h; what is not done then is reported as expired"
    )
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None


@router.post("", openapi_extra=body_schema(BatchBody, {"chat": _EXAMPLE}), summary="Start a batch")
async def create(request: Request, tenant: Tenant, offline: Stores) -> dict[str, Any]:
    """The new batch; its lines run in capacity that online requests leave over."""
    body = await read_json(request, BatchBody, MAX_BODY_BYTES)
    file = await offline.files.get(tenant, body.input_file_id)
    if file is None:
        raise no_file()
    if file.purpose != BATCH_INPUT:
        raise invalid_field("input_file_id", f"must be a file with purpose {BATCH_INPUT!r}", BATCH_INPUT)
    batch = await offline.batches.create(_spec(tenant, body, file, request.app.state.settings))
    await offline.queue.start(batch.spec.id)
    return batch_body(batch)


@router.get("", summary="List batches")
async def list_batches(
    tenant: Tenant,
    offline: Stores,
    after: Annotated[str | None, Query(max_length=256)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """A page, newest first; the next one is ``after`` its last id."""
    batches = await offline.batches.list(tenant, after, limit + 1)
    if batches is None:
        raise invalid_field("after", "no such batch")
    return page_body([batch_body(batch) for batch in batches], limit)


@router.get("/{batch_id}", summary="Look at a batch")
async def retrieve(batch_id: str, tenant: Tenant, offline: Stores) -> dict[str, Any]:
    """Its status, counts and files."""
    return batch_body(await _found(offline, tenant, batch_id))


@router.post("/{batch_id}/cancel", summary="Cancel a batch")
async def cancel(batch_id: str, tenant: Tenant, offline: Stores) -> dict[str, Any]:
    """Ends what is running; what is done by then stays, and its files follow with the status ``cancelled``."""
    await _found(offline, tenant, batch_id)
    if await offline.batches.move(batch_id, (Status.VALIDATING, Status.IN_PROGRESS), Status.CANCELLING):
        await offline.queue.start(batch_id)
    batch = await _found(offline, tenant, batch_id)
    if batch.status not in (Status.CANCELLING, Status.CANCELLED):
        detail = f"A batch that is {batch.status.value} can't be cancelled."
        raise ProblemError(Problem(409, "batch_not_cancellable", detail))
    return batch_body(batch)


def batch_body(batch: Batch) -> dict[str, Any]:
    """A batch as OpenAI describes it."""
    spec, fault = batch.spec, batch.fault
    times = {f"{status.value}_at": _seconds(batch.at.get(status)) for status in Status if status != "validating"}
    errors = None
    if fault is not None:
        data = [{"code": fault.code, "line": fault.line, "message": fault.message, "param": None}]
        errors = {"object": "list", "data": data}
    return {
        "id": spec.id,
        "object": "batch",
        "endpoint": spec.endpoint,
        "errors": errors,
        "input_file_id": spec.input_file_id,
        "completion_window": spec.completion_window,
        "status": batch.status.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(spec.created_s),
        "expires_at": int(spec.expires_s),
        **times,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": None if spec.metadata is None else dict(spec.metadata),
    }


def _spec(tenant: str, body: BatchBody, file: StoredFile, settings: Settings) -> BatchSpec:
    now_s = time.time()
    window_s = int(body.completion_window[:-1]) * _UNITS_S[body.completion_window[-1]]
    if window_s > settings.file_retention_s:
        bound = f"{int(settings.file_retention_s // 60)}m"
        raise invalid_field("completion_window", f"must not be over {bound}, how long files are kept", bound)
    expires_s = min(now_s + window_s, file.expires_s - READ_AGAIN_S)
    if expires_s <= now_s:
        raise invalid_field("input_file_id", "is about to expire; upload the file again")
    return BatchSpec(
        f"batch_{uuid.uuid4().hex}",
        tenant,
        file.id,
        body.endpoint,
        body.completion_window,
        now_s,
        expires_s,
        body.metadata,
    )


def _seconds(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)


async def _found(offline: Offline, tenant: str, batch_id: str) -> Batch:
    batch = await offline.batches.get(tenant, batch_id)
    if batch is None:
        raise ProblemError(Problem(404, "batch_not_found", "There is no such batch."))
    return batch
