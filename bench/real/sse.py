"""Server-sent events of a response, at as little cost as possible: the client shares the engines' cores."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

SEPARATOR = b"\n\n"


@dataclass(frozen=True, slots=True)
class Event:
    """``name`` is empty where the server gives none; ``came_s`` is when its bytes were read."""

    name: str
    data: bytes
    came_s: float


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """Events with data, as they come."""
    rest = b""
    async for chunk in response.content.iter_any():
        came_s = time.time()
        *blocks, rest = (rest + chunk).split(SEPARATOR)
        for block in blocks:
            event = parse(block, came_s)
            if event is not None:
                yield event


def parse(block: bytes, came_s: float) -> Event | None:
    """An event from its lines; None for comments and fields that carry no data."""
    name, data = "", None
    for line in block.split(b"\n"):
        if line.startswith(b"data: "):
            data = line[6:]
        elif line.startswith(b"event: "):
            name = line[7:].decode()
    return None if data is None else Event(name, data, came_s)
