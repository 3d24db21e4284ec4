"""Reading a multipart upload within bounds."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import PurePath

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from api.problems import FieldError, Problem, ProblemError, invalid, invalid_field

FORM_BYTES = 16 * 1024
"""What boundaries, headers and the fields beside the file may add to it."""

PIECE_BYTES = 256 * 1024
MAX_NAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form, spooled to disk where it is large, and the form's other fields."""

    filename: str
    fields: dict[str, str]
    file: UploadFile

    async def content(self) -> AsyncIterator[bytes]:
        """The file in pieces."""
        while piece := await self.file.read(PIECE_BYTES):
            yield piece


async def read_upload(request: Request, max_file_bytes: int) -> Upload:
    """The form with exactly one file, in the field ``file``; raises ProblemError (400, 413, 415, 422)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        error = FieldError("content-type", "must be multipart/form-data", "multipart/form-data")
        raise ProblemError(Problem(415, "unsupported_media_type", "The body must be a form.", (error,)))
    parser = MultiPartParser(
        request.headers, _bounded(request, max_file_bytes), max_files=1, max_fields=8, max_part_size=FORM_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError):
        raise ProblemError(Problem(400, "invalid_form", "The body is not a valid form with one file.")) from None
    file = form.get("file")
    if not isinstance(file, UploadFile):
        await form.close()
        raise invalid_field("file", "must be a file")
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    return Upload(_name(file.filename), fields, file)


def too_large(max_file_bytes: int) -> ProblemError:
    """The file is over its bound."""
    error = FieldError("file", f"is over {max_file_bytes} bytes", max_file_bytes)
    headers = {"connection": "close"}  # what is left of the body is not worth reading
    return ProblemError(Problem(413, "file_too_large", "The file is too large.", (error,), headers=headers))


def check_fields(fields: dict[str, str], known: frozenset[str]) -> None:
    """Raises ProblemError if the form has other fields."""
    unknown = sorted(set(fields) - known)
    if unknown:
        raise invalid(*(FieldError(name[:64], "unknown field") for name in unknown))


async def _bounded(request: Request, max_file_bytes: int) -> AsyncGenerator[bytes, None]:
    bound = max_file_bytes + FORM_BYTES
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > bound:
        raise too_large(max_file_bytes)
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > bound:
            raise too_large(max_file_bytes)
        yield piece


def _name(filename: str | None) -> str:
    name = PurePath((filename or "").replace("\\", "/")).name or "file"
    return name.encode("utf-8", "replace").decode()[:MAX_NAME_CHARS]
