"""Server-sent events: their format, and a response that notices at once when its reader has gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEP_ALIVE = b": keep-alive\n\n"
RETRY_MS = 1000
OPENAI_DONE = b"data: [DONE]\n\n"

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""Compact JSON; json.dumps would make an encoder for each event."""

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed its connection."""


def event(data: Mapping[str, Any], name: str | None = None, event_id: int | None = None) -> bytes:
    """One event with JSON data, which never holds a line break."""
    lines = [] if event_id is None else [f"id: {event_id}"]
    if name is not None:
        lines.append(f"event: {name}")
    lines.append(f"data: {to_json(data)}")
    return ("\n".join(lines) + "\n\n").encode()


def retry() -> bytes:
    """How long a reader should wait before it connects again."""
    return f"retry: {RETRY_MS}\n\n".encode()


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``; cancels it and raises ClientGone if the client disconnects first.

    To be used once the body has been read.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for running in (task, watch):
            running.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def until(request: Request, work: Awaitable[T]) -> T:
    """:func:`unless_gone` for a route."""
    return await unless_gone(request.receive, work)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Streams ``events``; ``close`` is called in every case when it is over."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], close: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(None, headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send until the events end or the client has gone."""
        try:
            await unless_gone(receive, self._send(send))
        except (ClientGone, OSError):
            pass
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
