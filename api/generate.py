"""``POST /generate``."""

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
from api.intake import Prepared, Prompt, Sender, prepare, tokens_of_text
from api.outcome import decision_body, outcome_of, problem_of, slo_body, usage_body
from api.schemas import GenerateBody
from api.sse import KEEP_ALIVE, event, retry, to_json
from api.state import get_ingress, sender_of
from common.messages import Decision

DEFAULT_MAX_TOKENS = 128

EXAMPLES: dict[str, dict[str, Any]] = {
    "by tier": {"prompt": "def fibonacci(n):", "max_tokens": 32, "tier": "code"},
    "explicit SLO": {
        "prompt": "Once",
        "max_tokens": 64,
        "slo": {"ttft_ms": 500, "tpot_ms": 50},
        "on_overload": "reject",
    },
    "stream": {"prompt_token_ids": [0, 42, 7], "max_tokens": 16, "stream": True, "temperature": 0},
}

router = APIRouter()


@router.post(
    "/generate",
    openapi_extra=body_schema(GenerateBody, EXAMPLES),
    summary="Generate text under an SLO",
    tags=["generate"],
)
async def generate(request: Request, tenant: Tenant, ingress: Annotated[Ingress, Depends(get_ingress)]) -> Response:
    """JSON, or with ``stream`` server-sent events ``decision``, ``token`` and ``done`` or ``error``."""
    body = await read_json(request, GenerateBody, ingress.settings.max_body_bytes)
    prepared = await intake(new_id(), body, sender_of(request, tenant, ingress), ingress.context)
    return await answer(request, ingress, prepared, bool(body.stream), render, stream)


def new_id() -> str:
    """A request id that nobody can guess."""
    return f"req-{uuid.uuid4().hex}"


async def intake(request_id: str, body: GenerateBody, sender: Sender, context: Context) -> Prepared:
    """The request that the body asks for; raises ProblemError."""
    if body.prompt is not None:
        name, tokens = "prompt", await tokens_of_text(body.prompt, "prompt", context)
    else:
        name, tokens = "prompt_token_ids", tuple(body.prompt_token_ids or ())
    room = max(1, context.facts.max_model_len - len(tokens))
    wanted = min(DEFAULT_MAX_TOKENS, room) if body.max_tokens is None else body.max_tokens
    return prepare(request_id, Prompt(tokens, name, wanted), body, body, sender, context)


def render(delivery: Delivery) -> dict[str, Any]:
    """The whole answer as JSON."""
    request = delivery.prepared.request
    return {
        "request_id": request.id,
        "tier": request.tier,
        "text": delivery.answer,
        "token_ids": delivery.tokens,
        **_closing(delivery),
    }


async def stream(exchange: Exchange, keep_alive_s: float) -> AsyncIterator[bytes]:
    """The answer as events. An event's id is the number of tokens that have been sent with it and before it."""
    yield retry()
    sent = 0
    async for update in exchange.updates(keep_alive_s):
        if update is None:
            yield KEEP_ALIVE
        elif isinstance(update, Piece):
            sent = update.position + len(update.tokens)
            yield _token(update, sent)
        else:
            yield event(_decided(exchange, update), "decision", sent)
    problem = problem_of(exchange.delivery)
    if problem is None:
        yield event({"request_id": exchange.request.id, **_closing(exchange.delivery)}, "done", sent)
    else:
        yield event(problem.body() | _closing(exchange.delivery), "error", sent)


def _token(piece: Piece, sent: int) -> bytes:
    """As :func:`api.sse.event` writes it, at little more than half the cost: these come in thousands a second."""
    ids, text = ",".join(map(str, piece.tokens)), to_json(piece.answer)
    data = f'{{"position":{piece.position},"token_ids":[{ids}],"text":{text},"time_s":{round(piece.time_s, 6)}}}'
    return f"id: {sent}\nevent: token\ndata: {data}\n\n".encode()


def _decided(exchange: Exchange, decision: Decision) -> dict[str, Any]:
    body = {"request_id": exchange.request.id, "tier": exchange.request.tier, "decision": decision_body(decision)}
    return body | {"slo": slo_body(decision, outcome_of(exchange.delivery))}


def _closing(delivery: Delivery) -> dict[str, Any]:
    return {
        "finish_reason": delivery.end and delivery.end.reason,
        "decision": decision_body(delivery.decision),
        "slo": slo_body(delivery.decision, outcome_of(delivery)),
        "usage": usage_body(len(delivery.prepared.request.prompt), len(delivery.tokens)),
    }
