"""``POST /v1/chat/completions``."""

import asyncio
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
from api.schemas import ChatBody
from api.state import get_ingress, sender_of
from api.tokenizer import THREAD_OVER_CHARS, TemplateError

KIND = "chat.completion"

EXAMPLES: dict[str, dict[str, Any]] = {
    "by tier": {"messages": [{"role": "user", "content": "What does zip() do?"}], "max_tokens": 64, "tier": "chat"},
    "stream": {"messages": [{"role": "user", "content": "Hello"}], "max_completion_tokens": 32, "stream": True},
}

router = APIRouter(tags=["openai"])


@router.post("/v1/chat/completions", openapi_extra=body_schema(ChatBody, EXAMPLES), summary="Answer a chat")
async def chat(request: Request, tenant: Tenant, ingress: Annotated[Ingress, Depends(get_ingress)]) -> Response:
    """OpenAI's chat completions; an SLO comes as ``tier``, ``slo`` or by the X-SLO headers."""
    body = await read_json(request, ChatBody, ingress.settings.max_body_bytes)
    prepared = await intake(new_id(), body, sender_of(request, tenant, ingress), ingress.context)
    first = True

    def choice(piece: Piece | None, reason: str | None) -> dict[str, Any]:
        nonlocal first
        delta = _delta(piece, first)
        first = False
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

    def stream(exchange: Exchange, keep_alive_s: float) -> AsyncIterator[bytes]:
        return stream_chunks(exchange, keep_alive_s, f"{KIND}.chunk", body, choice)

    return await answer(request, ingress, prepared, bool(body.stream), render, stream)


def new_id() -> str:
    """A request id that nobody can guess."""
    return f"chatcmpl-{uuid.uuid4().hex}"


async def intake(request_id: str, body: ChatBody, sender: Sender, context: Context) -> Prepared:
    """The request that the chat becomes by the model's template; raises ProblemError."""
    refuse_unserved(body)
    check_model(body.model, context.facts)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise invalid_field("max_completion_tokens", "excludes max_tokens, its older name")
    text = await _render_chat(body, context)
    tokens = await tokens_of_text(text, "messages", context, add_special_tokens=False)
    field = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    may_think = body.chat_template_kwargs is None or body.chat_template_kwargs.enable_thinking is not False
    prompt = Prompt(tokens, "messages", body.max_completion_tokens or body.max_tokens, field, may_think, chat=True)
    return prepare(request_id, prompt, body, body, sender, context)


def render(delivery: Delivery) -> dict[str, Any]:
    """The whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": delivery.answer}
    if delivery.reasoning:
        message["reasoning_content"] = delivery.reasoning
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(delivery)}
    return envelope(delivery, KIND) | {"choices": [choice], "usage": usage(delivery)} | promise(delivery)


def _delta(piece: Piece | None, first: bool) -> dict[str, Any]:
    delta: dict[str, Any] = {"role": "assistant"} if first else {}
    if piece is None:
        return delta
    if piece.reasoning:
        delta["reasoning_content"] = piece.reasoning
    if piece.answer or not piece.reasoning:
        delta["content"] = piece.answer
    return delta


async def _render_chat(body: ChatBody, context: Context) -> str:
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    options = {} if body.chat_template_kwargs is None else body.chat_template_kwargs.model_dump(exclude_none=True)
    size = sum(len(str(message.content)) for message in body.messages)
    try:
        if size <= THREAD_OVER_CHARS:
            return context.tokenizer.render(messages, **options)
        return await asyncio.to_thread(context.tokenizer.render, messages, **options)
    except TemplateError as error:
        raise invalid_field("messages", str(error)) from None
