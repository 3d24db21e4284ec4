from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.context import Context, load_context
from api.server import Server
from common.bus.memory import MemoryBus
from common.settings import Settings
from common.tiers import Tiers
from tests.api.pipeline import Pipeline

MODEL = Path(__file__).parents[2] / "bench" / "tiny_model" / "target"


@dataclass(frozen=True)
class Api:
    """A served app and a client of it."""

    server: Server
    client: httpx.AsyncClient
    bus: MemoryBus
    pipeline: Pipeline
    context: Context

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def state(self) -> Any:
        return self.server.config.app.state  # type: ignore[union-attr] # an application, not its import path


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(model=str(MODEL), shutdown_s=5.0, rehearsals=0)


@pytest.fixture(scope="session")
def context(settings: Settings) -> Context:
    return load_context(settings)


@asynccontextmanager
async def serving(
    settings: Settings, context: Context, bus: MemoryBus | None = None, tiers: Tiers | None = None, **options: Any
) -> AsyncIterator[Api]:
    """An api on a free port before a pipeline in miniature; ``options`` are settings, and fields of the pipeline."""
    bus = bus or MemoryBus()
    ours = {name: value for name, value in options.items() if name in Settings.model_fields}
    pipeline = Pipeline(bus, **{name: value for name, value in options.items() if name not in ours})
    app = create_app(settings.model_copy(update=ours), bus, replace(context, tiers=tiers or context.tiers))
    server = Server(app, "127.0.0.1", 0)
    async with AsyncExitStack() as stack:
        await server.open()
        stack.push_async_callback(server.drain, 0.0)
        await stack.enter_async_context(pipeline.serving())
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url, timeout=20))
        yield Api(server, client, bus, pipeline, context)


Serve = Callable[..., AbstractAsyncContextManager[Api]]


@pytest.fixture
def serve(settings: Settings, context: Context) -> Serve:
    """Starts an api: ``async with serve(script=..., keep_alive_s=...) as api``."""
    return partial(serving, settings, context)


@pytest.fixture
async def api(serve: Serve) -> AsyncIterator[Api]:
    async with serve() as served:
        yield served
