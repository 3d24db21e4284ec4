"""Reading a request's body within bounds, and turning what is wrong with it into problems."""

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from api.problems import FieldError, Problem, ProblemError, field_path, invalid

MAX_ERRORS = 16
_BOUNDS = ("ge", "gt", "le", "lt", "max_length", "min_length")
_UNION_BRANCHES = {"str", "constrained-str", "list[any]"}

B = TypeVar("B", bound=BaseModel)


async def read_json(request: Request, body_type: type[B], max_bytes: int) -> B:
    """The validated body; raises ProblemError (413, 415, 400, 422) or ClientDisconnect."""
    _check_content_type(request.headers.get("content-type"))
    return parse(await read_bounded(request, max_bytes), body_type)


async def read_bounded(request: Request, max_bytes: int) -> bytes:
    """The raw body, refused as soon as it is known to be over ``max_bytes``, whatever its headers say."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        event = await request.receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnect
        body += event.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not event.get("more_body", False):
            return bytes(body)


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
    seen: dict[str, FieldError] = {}
    for detail in details:
        error = _field_error(detail)
        seen.setdefault(error.field, error)
    return invalid(*list(seen.values())[:MAX_ERRORS])


def _field_error(detail: ErrorDetails) -> FieldError:
    parts = [part for part in detail["loc"] if str(part).split("(")[0] not in ("function-after", *_UNION_BRANCHES)]
    parts = [part for part in parts if not str(part).startswith("list[")]
    context = detail.get("ctx", {})
    bound = next((context[key] for key in _BOUNDS if key in context), None)
    message = detail["msg"].removeprefix("Value error, ")
    return FieldError(field_path(parts), message, bound if isinstance(bound, int | float | str) else None)


def _check_content_type(header: str | None) -> None:
    kind, _, parameters = (header or "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        error = FieldError("content-type", "must be application/json in UTF-8", "application/json")
        raise ProblemError(Problem(415, "unsupported_media_type", "The body must be JSON.", (error,)))


def _too_large(max_bytes: int) -> ProblemError:
    error = FieldError("body", f"is over {max_bytes} bytes", max_bytes)
    headers = {"connection": "close"}  # what is left of the body is not worth reading
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
