"""What a task needs to do async work: one event loop and one set of connections per run."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from common.bus.interface import Bus
from common.bus.redis import RedisBus
from common.keys import Keys
from common.offline.batches import BatchStore
from common.offline.files import FileStore
from common.offline.store import Client, connect
from common.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connections:
    """Open for the time of one task."""

    settings: Settings
    keys: Keys
    redis: Client
    bus: Bus
    batches: BatchStore
    files: FileStore


def run_async(settings: Settings, work: Callable[[Connections], Awaitable[T]]) -> T:
    """Run async work to its end with connections of its own."""
    return asyncio.run(_with_connections(settings, work))


async def _with_connections(settings: Settings, work: Callable[[Connections], Awaitable[T]]) -> T:
    keys = Keys(settings.namespace)
    redis, bus = connect(settings), RedisBus.connect(settings)
    try:
        stores = BatchStore(redis, keys, settings), FileStore(redis, keys, settings)
        return await work(Connections(settings, keys, redis, bus, *stores))
    finally:
        await bus.close()
        await redis.aclose()
