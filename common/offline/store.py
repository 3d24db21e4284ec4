"""What the file and the batch store share: their client, and pages of an index."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.bus.redis_client import bus_errors
from common.settings import Settings

Client: TypeAlias = Any
"""An asyncio Redis that returns bytes; redis-py's own types allow for text in every reply."""


COMMAND_TIMEOUT_S = 10.0


def connect(settings: Settings) -> Client:
    """A client for the stores; it connects when first used. Every call goes through :func:`redis_call`."""
    # redis-py's own timeouts can swallow a cancellation
    no_retry = Retry(NoBackoff(), 0)
    options: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None, "retry": no_retry}
    return Redis.from_url(settings.redis_url, protocol=2, socket_keepalive=True, **options)


@asynccontextmanager
async def redis_call() -> AsyncIterator[None]:
    """Around calls of the client: raises BusUnavailable, also when it takes too long, and BusFull."""
    async with bus_errors(), asyncio.timeout(COMMAND_TIMEOUT_S):
        yield


async def page(redis: Client, index: str, after: str | None, limit: int, newest_first: bool) -> Sequence[str] | None:
    """Up to ``limit`` members of a sorted set behind ``after``; None if ``after`` is not in it."""
    first = 0
    if after is not None:
        rank = await (redis.zrevrank(index, after) if newest_first else redis.zrank(index, after))
        if rank is None:
            return None
        first = int(rank) + 1
    members = await redis.zrange(index, first, first + limit - 1, desc=newest_first)
    return [member.decode() for member in members]
