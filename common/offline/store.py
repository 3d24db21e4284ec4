"""What the file and the batch store share: their client, and pages of an index."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from redis.asyncio import Redis

from common.settings import Settings

Client: TypeAlias = Any
"""An asyncio Redis that returns bytes; redis-py's own types allow for text in every reply."""


def connect(settings: Settings) -> Client:
    """A client for the stores; it connects when first used."""
    timeouts: dict[str, Any] = {"socket_timeout": 10.0, "socket_connect_timeout": 2.0}
    return Redis.from_url(settings.redis_url, protocol=2, socket_keepalive=True, **timeouts)


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
