"""One line of a batch's input, and one of its output or error file, in OpenAI's shape. No I/O."""

import json
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass
from typing import Any

import pydantic_core

from common.offline.batch import BatchSpec, Fault, request_id

MAX_CUSTOM_ID_CHARS = 512
LINE_FIELDS = frozenset(("custom_id", "method", "url", "body"))


@dataclass(frozen=True, slots=True)
class Line:
    """What a well-formed line asks for; ``body`` is the JSON of one request to the batch's endpoint."""

    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class BadLine:
    """Why a line is not sent; nothing here quotes it. ``custom_id`` is None where it can't be known."""

    custom_id: str | None
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look over the whole input found: how many lines, the bad ones, and why it can't run at all."""

    total: int
    bad: Mapping[int, BadLine]
    fault: Fault | None = None


def parse_line(raw: bytes, endpoint: str, max_bytes: int) -> Line | BadLine:
    """Check everything but the body's own fields."""
    if len(raw) > max_bytes:
        return BadLine(None, "line_too_long", f"The line is over {max_bytes} bytes.")
    try:
        line = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError:
        return BadLine(None, "invalid_json_line", "The line is not valid JSON in UTF-8.")
    if not isinstance(line, dict):
        return BadLine(None, "invalid_json_line", "The line is not a JSON object.")
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        message = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters."
        return BadLine(None, "invalid_custom_id", message)
    unknown = set(line) - LINE_FIELDS
    if unknown:
        return BadLine(custom_id, "unknown_field", f"Only {', '.join(sorted(LINE_FIELDS))} may stand in a line.")
    if line.get("method") != "POST":
        return BadLine(custom_id, "invalid_method", "method must be POST.")
    if line.get("url") != endpoint:
        return BadLine(custom_id, "invalid_url", f"url must be the batch's endpoint, {endpoint}.")
    body = line.get("body")
    if not isinstance(body, dict):
        return BadLine(custom_id, "invalid_body", "body must be a JSON object.")
    if body.get("stream"):
        return BadLine(custom_id, "stream_not_supported", "A line of a batch can't be streamed.")
    return Line(custom_id, pydantic_core.to_json(body))


async def survey(lines: AsyncIterable[tuple[int, bytes]], endpoint: str, max_lines: int, max_line_bytes: int) -> Survey:
    """Look over all lines once: bad ones, and those whose custom_id an earlier line has."""
    bad: dict[int, BadLine] = {}
    seen: set[str] = set()
    total = 0
    async for number, raw in lines:
        total += 1
        if total > max_lines:
            return Survey(total, {}, Fault("too_many_lines", f"A batch has at most {max_lines} lines.", number))
        line = parse_line(raw, endpoint, max_line_bytes)
        if isinstance(line, BadLine):
            bad[number] = line
        elif line.custom_id in seen:
            bad[number] = BadLine(line.custom_id, "duplicate_custom_id", "An earlier line has this custom_id.")
        else:
            seen.add(line.custom_id)
    fault = None if total else Fault("empty_file", "The input file has no lines.")
    return Survey(total, bad, fault)


def response_entry(spec: BatchSpec, number: int, custom_id: str, status: int, body: Mapping[str, Any]) -> bytes:
    """A line that got a response, good or bad."""
    response = {"status_code": status, "request_id": request_id(spec.id, number), "body": body}
    return _entry(spec, number, custom_id, response, None)


def error_entry(spec: BatchSpec, number: int, bad: BadLine) -> bytes:
    """A line that got none."""
    return _entry(spec, number, bad.custom_id, None, {"code": bad.code, "message": bad.message})


def _entry(spec: BatchSpec, number: int, custom_id: str | None, response: Any, error: Any) -> bytes:
    entry = {
        "id": f"batch_req_{spec.id.removeprefix('batch_')}_{number}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
