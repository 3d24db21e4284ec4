"""``POST /v1/completions``."""

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.answering import answer
from api.auth import Tenant
from api.body import body_schema, read_json
from api.context import Context
from api.delivery import Delivery, Piece
from api.exchange import Exchange
from api.ingress import Ingress
from api.intake import Prepared, Prompt, Sender, check_model, prepare, tokens_of_text
from api.openai.chunks import envelope, finish_reason, promise, stream_chunks, usage
from api.openai.unserved import refuse_unserved
from api.problems import invalid_field
from api.schemas import MAX_TOKEN_ID, CompletionBody
from api.state import get_ingress, sender_of
from common.codec import Tokens

KIND = "text_completion"
DEFAULT_MAX_TOKENS = 16

EXAMPLES: dict[str, dict[str, Any]] = {
    "by tier": {"prompt": "def fibonacci(n):", "max_tokens": 32, "tier": "code"},
    "stream": {"prompt": "import", "stream": True, "stream_options": {"include_usage": True}},
}

router = APIRouter(tags=["openai"])


@router.post("/v1/completions", openapi_extra=body_schema(CompletionBody, EXAMPLES), summary="Complete a text")
async def completions(request: Request, tenant: Tenant, ingress: Annotated[Ingress, Depends(get_ingress)]) -> Response:
    """OpenAI's completions; an SLO comes as ``tier``, ``slo`` or by the X-SLO headers."""
    body = await read_json(request, CompletionBody, ingress.settings.max_body_bytes)
    prepared = await intake(new_id(), body, sender_of(request, tenant, ingress), ingress.context)

    def stream(exchange: Exchange, keep_alive_s: float) -> AsyncIterator[bytes]:
        return stream_chunks(exchange, keep_alive_s, KIND, body, _choice)

    return await answer(request, ingress, prepared, bool(body.stream), render, stream)


def new_id() -> str:
    """A request id that nobody can guess."""
    return f"cmpl-{uuid.uuid4().hex}"


async def intake(request_id: str, body: CompletionBody, sender: Sender, context: Context) -> Prepared:
    """The request that the body asks for; raises ProblemError."""
    refuse_unserved(body)
    check_model(body.model, context.facts)
    given = _single(body.prompt)
    tokens = given if isinstance(given, tuple) else await tokens_of_text(given, "prompt", context)
    room = max(1, context.facts.max_model_len - len(tokens))
    wanted = min(DEFAULT_MAX_TOKENS, room) if body.max_tokens is None else body.max_tokens
    return prepare(request_id, Prompt(tokens, "prompt", wanted), body, body, sender, context)


def render(delivery: Delivery) -> dict[str, Any]:
    """The whole answer."""
    choice = {"index": 0, "text": delivery.answer, "logprobs": None, "finish_reason": finish_reason(delivery)}
    return envelope(delivery, KIND) | {"choices": [choice], "usage": usage(delivery)} | promise(delivery)


def _choice(piece: Piece | None, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": piece.answer if piece else "", "logprobs": None, "finish_reason": reason}


def _single(prompt: str | list[Any]) -> str | Tokens:
    """The one prompt in any of the four shapes that OpenAI's API has for it."""
    if isinstance(prompt, list) and prompt and all(type(item) in (str, list) for item in prompt):
        if len(prompt) > 1:
            raise invalid_field("prompt", "only one prompt a request is served", 1)
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if not all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in prompt):
        raise invalid_field("prompt", "must be text, token ids, or a list of exactly one of either")
    return tuple(prompt)
