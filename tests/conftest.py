from collections.abc import Iterator

import pytest
from hypothesis import settings

from common.redis_server import RedisServer
from tests.redis_servers import flush, redis_binary, started

settings.register_profile("any machine", deadline=None)  # machines stand still at times, and compile at first
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """An own Redis for this test session."""
    yield from started(tmp_path_factory, redis_binary())


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis."""
    flush(redis_server.url)
    return redis_server.url
