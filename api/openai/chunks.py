"""What the answers of both routes have in common."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from api.delivery import Delivery, Piece
from api.exchange import Exchange
from api.outcome import decision_body, outcome_of, problem_of, slo_body, usage_body
from api.schemas import CommonOpenAI
from api.sse import KEEP_ALIVE, OPENAI_DONE, event
from common.slo import thinking_tokens

Choice = Callable[[Piece | None, str | None], dict[str, Any]]
"""One streamed choice: the new piece, if any, and the finish reason once it is known."""


def envelope(delivery: Delivery, kind: str) -> dict[str, Any]:
    """The members of every answer and chunk."""
    request = delivery.prepared.request
    model = delivery.facts.served_name
    return {"id": request.id, "object": kind, "created": int(request.arrival_s), "model": model}


def usage(delivery: Delivery) -> dict[str, Any]:
    """Token counts; thinking is told apart where the model does it."""
    body = usage_body(len(delivery.prepared.request.prompt), len(delivery.tokens))
    if delivery.prepared.chat and delivery.reasoning:
        thought = thinking_tokens(delivery.tokens, None, delivery.prepared.thinking.end)
        body["completion_tokens_details"] = {"reasoning_tokens": len(delivery.tokens) if thought is None else thought}
    return body


def promise(delivery: Delivery) -> dict[str, Any]:
    """Decision and SLO, beside OpenAI's members."""
    return {
        "decision": decision_body(delivery.decision),
        "slo": slo_body(delivery.decision, outcome_of(delivery)),
    }


def finish_reason(delivery: Delivery) -> str | None:
    """``stop`` or ``length``."""
    return delivery.end.reason if delivery.end is not None else None


async def stream_chunks(
    exchange: Exchange, keep_alive_s: float, kind: str, body: CommonOpenAI, choice: Choice
) -> AsyncIterator[bytes]:
    """Chunks as the official client reads them: the finish reason stands in the last one with text."""
    delivery = exchange.delivery
    head = envelope(delivery, kind)
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    blank = {"usage": None} if with_usage else {}
    finished = False
    async for update in exchange.updates(keep_alive_s):
        if update is None:
            yield KEEP_ALIVE
        elif isinstance(update, Piece):
            finished = exchange.last_sent and problem_of(delivery) is None
            reason = finish_reason(delivery) if finished else None
            extra = promise(delivery) if finished else {}
            yield event(head | {"choices": [choice(update, reason)]} | blank | extra)
    problem = problem_of(delivery)
    if problem is not None:
        yield event(problem.body(openai=True))
    elif not finished:
        yield event(head | {"choices": [choice(None, finish_reason(delivery))]} | blank | promise(delivery))
    if with_usage and problem is None:
        yield event(head | {"choices": [], "usage": usage(delivery)})
    yield OPENAI_DONE
