"""Redis processes of a test session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from common.redis_server import NoRedis, RedisServer, find_redis


def redis_binary() -> Path:
    """The Redis of this machine; without any the test skips, and fails in CI."""
    try:
        return find_redis()
    except NoRedis as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def started(factory: pytest.TempPathFactory, binary: Path) -> Iterator[RedisServer]:
    with RedisServer(factory.mktemp("redis"), binary=binary) as server:
        yield server


def flush(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        client.script_flush()
