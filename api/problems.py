"""Refusals as RFC 9457 problem details; OpenAI routes get OpenAI's ``error`` object beside the same members."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
OPENAI_PREFIX = "/v1/"
GENERATION_PREFIXES = ("/v1/completions", "/v1/chat/")
OVERLOAD_RETRY_S = 1.0
"""Retry-After where nothing better is known: the queue did not answer, so there is nothing to predict from."""

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field. ``bound`` is the limit that was passed, where there is one."""

    field: str
    message: str
    bound: float | str | None = None

    def body(self) -> dict[str, Any]:
        """As JSON."""
        body: dict[str, Any] = {"field": self.field, "message": self.message}
        return body if self.bound is None else body | {"bound": self.bound}


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal or failure. ``code`` is stable and machine-readable; nothing here repeats the prompt."""

    status: int
    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    retry_after_s: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, openai: bool = False) -> dict[str, Any]:
        """The JSON members, with OpenAI's ``error`` object if asked for."""
        body: dict[str, Any] = {
            "type": f"urn:slos-serve:problem:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.extra,
        }
        if self.errors:
            body["errors"] = [error.body() for error in self.errors]
        if self.retry_after_s is not None and math.isfinite(self.retry_after_s):
            body["retry_after_s"] = self.retry_after_s
        return body | {"error": self.openai_error()} if openai else body

    def openai_error(self) -> dict[str, Any]:
        """OpenAI's error object."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "message": "; ".join([self.detail, *(f"{error.field}: {error.message}" for error in self.errors)]),
            "type": _OPENAI_TYPES.get(self.status, default),
            "param": self.errors[0].field if self.errors else None,
            "code": self.code,
        }

    def response(self, openai: bool = False) -> JSONResponse:
        """The HTTP response; Retry-After is rounded up to whole seconds, at least one."""
        headers = dict(self.headers)
        if self.retry_after_s is not None and math.isfinite(self.retry_after_s):
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        return JSONResponse(self.body(openai), self.status, headers, MEDIA_TYPE)


class ProblemError(Exception):
    """Raised to answer a request with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.code}")
        self.problem = problem


def invalid(*errors: FieldError, status: int = 422) -> ProblemError:
    """Fields that can't be accepted."""
    return ProblemError(Problem(status, "invalid_request", "The request is not valid.", errors))


def invalid_field(name: str, message: str, bound: float | str | None = None) -> ProblemError:
    """One field that can't be accepted."""
    return invalid(FieldError(name, message, bound))


def unavailable(detail: str, code: str = "queue_unavailable") -> ProblemError:
    """The queue can't take or answer anything now."""
    return ProblemError(Problem(503, code, detail, retry_after_s=OVERLOAD_RETRY_S))


def of_status(status: int, detail: str | None = None, headers: Mapping[str, str] | None = None) -> Problem:
    """A problem for a bare HTTP status, such as 404 from the router."""
    phrase = HTTPStatus(status).phrase
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    retry_after_s = OVERLOAD_RETRY_S if status in (429, 503) else None
    return Problem(status, code, detail or phrase, retry_after_s=retry_after_s, headers=headers or {})


def is_openai(path: str) -> bool:
    """Whether errors on this path carry OpenAI's object."""
    return path.startswith(OPENAI_PREFIX)


def for_openai(problem: Problem, path: str) -> Problem:
    """What OpenAI's own servers, and their clients' exception types, call 400 on the generating routes."""
    if problem.status == 422 and path.startswith(GENERATION_PREFIXES):
        return replace(problem, status=400)
    return problem


def field_path(parts: Sequence[str | int]) -> str:
    """``messages[0].content`` from a validation error's location; over-long names of unknown fields are cut."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:64]}" if path else part[:64]
    return path or "body"
