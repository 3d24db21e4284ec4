"""A small HTTP server that answers like vLLM and like the product; tests decide when each token goes out."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from bench.workloads import Item
from common.messages import Slo

Body = dict[str, Any]
Tokens = Callable[[Body], AsyncIterator[int]]
"""How many tokens the next event carries, for a request's body."""

EASY = Slo(60_000.0, None, 5_000.0)


async def at_once(body: Body) -> AsyncIterator[int]:
    """All tokens, one an event."""
    for _ in range(body["max_tokens"]):
        yield 1


@asynccontextmanager
async def serving(tokens: Tokens = at_once) -> AsyncIterator[tuple[str, list[Body]]]:
    """The server's address, and the bodies of the requests that it has got."""
    bodies: list[Body] = []

    async def completions(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        bodies.append(body)
        if not body.get("stream"):
            return web.json_response({"kv_transfer_params": {"remote_engine_id": "e1"}})
        response = await _stream(request)
        async for count in tokens(body):
            await _send(response, {"choices": [{"token_ids": [7] * count}]})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        bodies.append(body)
        if body["max_tokens"] == REFUSED:
            return web.json_response({"code": "queue_full"}, status=429)
        response = await _stream(request)
        for verdict in ("deferred", "admitted"):
            data = {"request_id": "r1", "decision": {"verdict": verdict, "reason": ""}}
            await _send(response, data | {"slo": {"predicted": {"ttft_ms": 50.0, "tpot_ms": 5.0}}}, "decision")
        async for count in tokens(body):
            await _send(response, {"token_ids": [7] * count}, "token")
        if body["max_tokens"] == BROKEN:
            await _send(response, {"code": "worker_died", "detail": "twice"}, "error")
        return response

    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/generate", generate)
    async with _listening(app) as url:
        yield url, bodies


REFUSED, BROKEN = 429, 503
"""``max_tokens`` of requests that the server refuses, or breaks off."""


@asynccontextmanager
async def _listening(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


async def _send(response: web.StreamResponse, data: Body, name: str = "") -> None:
    head = f"event: {name}\n" if name else ""
    await response.write(f"{head}data: {json.dumps(data)}\n\n".encode())


def item(arrival_s: float = 0.0, session: str = "s", output: int = 3, **more: Any) -> Item:
    """A request of the tier chat."""
    return Item(arrival_s, session, "chat", 8, output, **more)
