"""The api's own intake and rendering, for lines of batches: what a line gives is what a request would have given."""

import functools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from api.body import parse
from api.context import Context, load_context
from api.delivery import Delivery
from api.intake import Prepared, Sender
from api.openai import chat, completions
from api.outcome import problem_of
from api.problems import ProblemError
from api.schemas import ChatBody, CompletionBody
from common.messages import Overload, Record, Request
from common.offline.batch import BatchSpec
from common.offline.run import Call, LineRefused
from common.settings import Settings
from common.telemetry import names, tracing

_RENDER = {"/v1/completions": completions.render, "/v1/chat/completions": chat.render}


class OpenAIEndpoint:
    """A :class:`common.offline.run.Endpoint` for the OpenAI routes."""

    def __init__(self, context: Context, tier: str) -> None:
        self._context = context
        self._tier = tier

    async def call(self, spec: BatchSpec, request_id: str, body: bytes) -> Call:
        """Prepare one line as best effort; raises LineRefused."""
        try:
            prepared = await self._prepare(spec, request_id, body)
        except ProblemError as error:
            raise LineRefused(error.problem.status, error.problem.body(openai=True)) from None
        return _Call(prepared, self._context, spec.endpoint)

    async def _prepare(self, spec: BatchSpec, request_id: str, body: bytes) -> Prepared:
        now_s = time.time()
        sender = Sender(spec.tenant, now_s, headers={"x-slo-tier": self._tier})
        if spec.endpoint == "/v1/completions":
            prepared = await completions.intake(request_id, parse(body, CompletionBody), sender, self._context)
        else:
            prepared = await chat.intake(request_id, parse(body, ChatBody), sender, self._context)
        left_ms = max(1.0, (spec.expires_s - now_s) * 1e3)
        request = prepared.request
        patience_ms = min(request.patience_ms, left_ms)
        request = replace(request, slo=None, overload=Overload.DEFER, patience_ms=patience_ms, trace=_trace(request))
        return replace(prepared, request=request)


class _Call:
    def __init__(self, prepared: Prepared, context: Context, endpoint: str) -> None:
        self._prepared, self._context, self._endpoint = prepared, context, endpoint
        self._seen = self._new()

    @property
    def request(self) -> Request:
        return self._prepared.request

    @property
    def max_queued(self) -> int:
        return self._prepared.max_queued

    def stopped(self, record: Record) -> bool:
        self._seen.catch_up(replace(record, end=None), time.time())
        return self._seen.stopped

    def response(self, record: Record) -> tuple[int, Mapping[str, Any]]:
        delivery = self._new()
        delivery.catch_up(record, time.time())
        problem = problem_of(delivery)
        if problem is not None:
            return problem.status, problem.body(openai=True)
        return 200, _RENDER[self._endpoint](delivery)

    def _new(self) -> Delivery:
        return Delivery(self._prepared, self._context)


@functools.cache
def load_endpoint(settings: Settings) -> OpenAIEndpoint:
    """Once per process; raises OSError or ValueError if the model's tokenizer or configuration can't be read."""
    return OpenAIEndpoint(load_context(settings), settings.batch_tier)


def _trace(request: Request) -> Mapping[str, str]:
    """A trace of its own for each line, begun by the span that sends it."""
    now_s = time.time()
    attributes = {**names.send_attributes(f"requests.{request.tier}", request.id), names.REQUEST_ID: request.id}
    return tracing.record_span(names.send_requests(request.tier), None, now_s, now_s, attributes)
