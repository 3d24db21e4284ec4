"""From a prepared request to an HTTP response, the same way on every route."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from api.delivery import Delivery
from api.exchange import Exchange
from api.ingress import Ingress
from api.intake import Prepared
from api.outcome import problem_of
from api.problems import ProblemError
from api.sse import ClientGone, EventStream, until

Render = Callable[[Delivery], dict[str, Any]]
Stream = Callable[[Exchange, float], AsyncIterator[bytes]]


async def answer(
    request: Request, ingress: Ingress, prepared: Prepared, streaming: bool, render: Render, stream: Stream
) -> Response:
    """Submit and answer; raises ProblemError, or ClientGone once nobody is left to be answered.

    A stream's headers wait for the first news, so that a refusal is a real 429 or 503, but no longer than for one
    keep-alive period.
    """
    exchange = await ingress.submit(prepared)
    headers = {"x-request-id": exchange.request.id}
    keep_alive_s = ingress.settings.keep_alive_s
    try:
        await until(request, exchange.started(keep_alive_s) if streaming else exchange.wait())
        problem = problem_of(exchange.delivery)
        if problem is not None and not (streaming and exchange.delivery.tokens):
            raise ProblemError(problem)
        if not streaming:
            response = JSONResponse(render(exchange.delivery), headers=headers)
            exchange.close()
            return response
        return EventStream(stream(exchange, keep_alive_s), exchange.close, headers)
    except BaseException as error:
        exchange.close("client_disconnected" if isinstance(error, ClientGone) else "never_answered")
        raise
