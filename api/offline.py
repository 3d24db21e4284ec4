"""What the routes of files and batches share: the stores, and the queue of background work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request

from common.keys import Keys
from common.offline.batches import BatchStore
from common.offline.files import FileStore
from common.offline.store import connect
from common.settings import Settings
from common.tasks.queue import BatchQueue


@dataclass(frozen=True, slots=True)
class Offline:
    """One per api replica; connects when first used."""

    files: FileStore
    batches: BatchStore
    queue: BatchQueue


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Lifespan of any number of routers whose routes use :func:`get_offline`; ``app.state.settings`` must be set."""
    if hasattr(app.state, "offline"):
        yield
        return
    settings: Settings = app.state.settings
    redis, keys = connect(settings), Keys(settings.namespace)
    queue = BatchQueue(settings)
    app.state.offline = Offline(FileStore(redis, keys, settings), BatchStore(redis, keys, settings), queue)
    yield
    queue.close()
    await redis.aclose()


async def get_offline(request: Request) -> Offline:
    """The replica's stores."""
    offline = request.app.state.offline
    assert isinstance(offline, Offline)
    return offline
