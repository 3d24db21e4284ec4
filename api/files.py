"""``/v1/files``: the input and output of offline batches, as OpenAI's API has them."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from api.auth import Tenant
from api.offline import Offline, get_offline, lifespan
from api.problems import FieldError, Problem, ProblemError, invalid_field
from api.upload import check_fields, read_upload, too_large
from common.offline.files import BATCH_INPUT, FileTooLarge, QuotaExceeded, StoredFile
from common.settings import Settings

MAX_PAGE = 10_000

router = APIRouter(prefix="/v1/files", tags=["batches"], lifespan=lifespan)
Stores = Annotated[Offline, Depends(get_offline)]

_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JSON Lines, one request each"},
        "purpose": {"type": "string", "enum": [BATCH_INPUT]},
    },
}


@router.post(
    "",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
    summary="Upload the input of a batch",
)
async def upload(request: Request, tenant: Tenant, offline: Stores) -> dict[str, Any]:
    """The file's description. It is kept for ``SLOS_FILE_RETENTION_S``."""
    settings: Settings = request.app.state.settings
    form = await read_upload(request, settings.max_file_bytes)
    try:
        check_fields(form.fields, frozenset(("purpose",)))
        if form.fields.get("purpose") != BATCH_INPUT:
            raise invalid_field("purpose", f"must be {BATCH_INPUT!r}", BATCH_INPUT)
        file = await offline.files.upload(tenant, form.filename, BATCH_INPUT, form.content())
    except FileTooLarge:
        raise too_large(settings.max_file_bytes) from None
    except QuotaExceeded:
        bound = settings.file_quota_bytes
        error = FieldError("file", f"all files together may have {bound} bytes; delete some", bound)
        raise ProblemError(Problem(413, "quota_exceeded", "There is no room for this file.", (error,))) from None
    finally:
        await form.file.close()
    return file_body(file)


@router.get("", summary="List files")
async def list_files(
    tenant: Tenant,
    offline: Stores,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[str | None, Query(max_length=256)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """A page, newest first unless ``order`` is ``asc``; the next one is ``after`` its last id."""
    files = await offline.files.list(tenant, purpose, after, limit + 1, order == "desc")
    if files is None:
        raise invalid_field("after", "no such file")
    return page_body([file_body(file) for file in files], limit)


@router.get("/{file_id}", summary="Describe a file")
async def retrieve(file_id: str, tenant: Tenant, offline: Stores) -> dict[str, Any]:
    """What is known about it, but not its content."""
    return file_body(await _found(offline, tenant, file_id))


@router.get("/{file_id}/content", summary="Download a file", response_class=Response)
async def content(file_id: str, tenant: Tenant, offline: Stores) -> StreamingResponse:
    """The bytes that were uploaded, or a batch's results."""
    file = await _found(offline, tenant, file_id)
    headers = {"content-length": str(file.bytes), "x-content-type-options": "nosniff"}
    return StreamingResponse(offline.files.read(file), headers=headers, media_type="application/octet-stream")


@router.delete("/{file_id}", summary="Delete a file")
async def delete(file_id: str, tenant: Tenant, offline: Stores) -> dict[str, Any]:
    """Refused while a batch reads it."""
    await _found(offline, tenant, file_id)
    for batch_id in await offline.batches.open():
        batch = await offline.batches.get(tenant, batch_id)
        if batch is not None and batch.spec.input_file_id == file_id:
            detail = f"Batch {batch_id} reads this file; cancel it or wait for its end."
            raise ProblemError(Problem(409, "file_in_use", detail))
    if not await offline.files.delete(tenant, file_id):
        raise no_file()
    return {"id": file_id, "object": "file", "deleted": True}


def file_body(file: StoredFile) -> dict[str, Any]:
    """A file as OpenAI describes it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_s),
        "expires_at": int(file.expires_s),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def page_body(items: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page as OpenAI has it, from up to one item more than ``limit``."""
    shown = items[:limit]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": len(items) > limit}


def no_file() -> ProblemError:
    """404, for other tenants' files too."""
    return ProblemError(Problem(404, "file_not_found", "There is no such file."))


async def _found(offline: Offline, tenant: str, file_id: str) -> StoredFile:
    file = await offline.files.get(tenant, file_id)
    if file is None:
        raise no_file()
    return file
