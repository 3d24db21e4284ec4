"""Reading a request's body within bounds, and turning what is wrong with it into problems."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from api.problems import FieldError, Problem, ProblemError, field_path, invalid

MAX_ERRORS = 16
BODY_S = 60.0
"""Longest time that a body may take to arrive."""

DISCARD_TIMES = 16
"""A body is read to its end, and thrown away, up to this many times the bound."""

_BOUNDS = ("ge", "gt", "le", "lt", "max_length", "min_length")
_BRANCH = re.compile(r"str|constrained-str|(list|function-after)\[.*")
_WRONG_BRANCH = {"string_type", "list_type"}

B = TypeVar("B", bound=BaseModel)


async def read_json(request: Request, body_type: type[B], max_bytes: int) -> B:
    """The validated body; raises ProblemError (413, 415, 400, 422) or ClientDisconnect."""
    _check_content_type(request.headers.get("content-type"))
    return parse(await read_bounded(request, max_bytes), body_type)


async def read_bounded(request: Request, max_bytes: int) -> bytes:
    """The raw body; raises ProblemError 413 if it is over ``max_bytes``, whatever its headers say, and 408.

    What is too large is read to its end but not kept, since a client that is still sending can't read an answer.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes * DISCARD_TIMES:
        raise _too_large(max_bytes, close=True)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in _chunks(request):
                size += len(chunk)
                if size > max_bytes * DISCARD_TIMES:
                    raise _too_large(max_bytes, close=True)
                if size <= max_bytes:
                    body += chunk
    except TimeoutError:
        headers = {"connection": "close"}
        detail = f"The body did not come within {BODY_S:g} s."
        raise ProblemError(Problem(408, "body_timeout", detail, headers=headers)) from None
    if size > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    more = True
    while more:
        event = await request.receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnect
        yield event.get("body", b"")
        more = event.get("more_body", False)


def parse(raw: bytes, body_type: type[B]) -> B:
    """Validate JSON; raises ProblemError 400 if it is none, 422 naming fields and bounds."""
    try:
        return body_type.model_validate_json(raw)
    except ValidationError as error:
        raise _problem(error.errors(include_url=False, include_input=False)) from None


def _problem(details: list[ErrorDetails]) -> ProblemError:
    if details and details[0]["type"] == "json_invalid":
        # The parser's own words can quote the text; where it stopped is enough to find the mistake.
        where = str(details[0].get("ctx", {}).get("error", "")).rpartition(" at ")[2]
        return ProblemError(Problem(400, "invalid_json", f"The body is not valid JSON in UTF-8 (near {where})."))
    errors: dict[str, FieldError] = {}
    for detail in sorted(details, key=_of_other_branch):
        error = _field_error(detail)
        related = any(known == error.field or known.startswith(f"{error.field}[") for known in errors)
        if not (related and _of_other_branch(detail)):
            errors.setdefault(error.field, error)
    return invalid(*list(errors.values())[:MAX_ERRORS])


def _of_other_branch(detail: ErrorDetails) -> bool:
    """Whether this only says that the value is not of one of the types that its field may have."""
    return detail["type"] in _WRONG_BRANCH and _BRANCH.fullmatch(str(detail["loc"][-1])) is not None


def _field_error(detail: ErrorDetails) -> FieldError:
    parts = [part for part in detail["loc"] if isinstance(part, int) or not _BRANCH.fullmatch(part)]
    context = detail.get("ctx", {})
    bound = next((context[key] for key in _BOUNDS if key in context), None)
    message = "must be text or a list" if _of_other_branch(detail) else detail["msg"].removeprefix("Value error, ")
    return FieldError(field_path(parts), message, bound if isinstance(bound, int | float | str) else None)


def _check_content_type(header: str | None) -> None:
    kind, _, parameters = (header or "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        error = FieldError("content-type", "must be application/json in UTF-8", "application/json")
        raise ProblemError(Problem(415, "unsupported_media_type", "The body must be JSON.", (error,)))


def _too_large(max_bytes: int, close: bool = False) -> ProblemError:
    error = FieldError("body", f"is over {max_bytes} bytes", max_bytes)
    headers = {"connection": "close"} if close else {}
    return ProblemError(Problem(413, "body_too_large", "The body is too large.", (error,), headers=headers))


def body_schema(body_type: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its body itself."""
    schema = json.loads(json.dumps(body_type.model_json_schema(ref_template="#/components/schemas/{model}")))
    definitions = schema.pop("$defs", {})
    schema = _inline(schema, definitions)
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inline(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inline(value, definitions) for key, value in node.items()}
