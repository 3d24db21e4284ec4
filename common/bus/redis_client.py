"""Connections, scripts and errors of the Redis bus; the roles are mixed in by :class:`common.bus.redis.RedisBus`."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any, Self

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from common.bus.interface import START, Cursor
from common.bus.redis_connections import Connections
from common.errors import BusError, BusFull, BusUnavailable, LeadershipLost
from common.keys import ADMISSION, PLANNERS, Keys

COMMAND_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 2.0
MAX_CONNECTIONS = 32
LOG_BOUND = 10_000
STREAM_TTL_S = 3600
BURIED_TTL_S = 86400

_OPTIONS: dict[str, Any] = {
    "protocol": 2,  # one form of replies for all servers and versions of redis-py
    "socket_timeout": None,  # redis-py would use asyncio.wait_for, which may swallow a cancel before Python 3.12
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "retry": Retry(NoBackoff(), 0),
}

log = logging.getLogger(__name__)

_SCRIPTS = Path(__file__).with_name("lua")
_LIBRARY = f"""
local PLANNERS, ADMISSION = '{PLANNERS}', '{ADMISSION}'
local LOG_BOUND, STREAM_TTL_S, BURIED_TTL_S = {LOG_BOUND}, {STREAM_TTL_S}, {BURIED_TTL_S}
""" + (_SCRIPTS / "lib.lua").read_text()
_UNAVAILABLE = ("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF", "BUSY")

Entry = tuple[str, Sequence[bytes]]
"""An entry of a stream: its id, then its fields and values in turn."""


class Script:
    """One file of ``lua/`` with the shared library before it."""

    def __init__(self, name: str) -> None:
        self.source = _LIBRARY + (_SCRIPTS / f"{name}.lua").read_text()
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


_SOURCES = {path.stem: Script(path.stem) for path in _SCRIPTS.glob("*.lua") if path.stem != "lib"}


class RedisClient:
    """Connections for short verbs and others for blocking reads.

    Without an answer for ``timeout_s`` (and the time of a blocking read) Redis counts as away. Nothing is retried
    here: a verb that fails with BusUnavailable may be repeated by its caller.
    """

    def __init__(self, url: str, keys: Keys, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self.keys = keys
        self._timeout_s = timeout_s
        options = _OPTIONS if url.startswith("unix:") else {**_OPTIONS, "socket_keepalive": True}
        self.connections = Connections(url, MAX_CONNECTIONS, options)
        self._blocking = Connections(url, None, options)  # a read that waits must not make others wait
        self._script_keys = _script_keys(keys)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release connections."""
        await self.connections.close()
        await self._blocking.close()

    async def ping(self) -> None:
        """Raise BusUnavailable unless Redis answers."""
        await self._command("PING")

    async def _command(self, *arguments: Any) -> Any:
        async with bus_errors(), asyncio.timeout(self._timeout_s):
            return await self.connections.call(*arguments)

    async def _run(self, name: str, *arguments: Any) -> Any:
        async with bus_errors(), asyncio.timeout(self._timeout_s):
            try:
                return await self.connections.call(*self._by_sha(name, arguments))
            except NoScriptError:
                return await self.connections.call(*self._by_source(name, arguments))

    def _by_sha(self, name: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
        return "EVALSHA", _SOURCES[name].sha, len(self._script_keys), *self._script_keys, *arguments

    def _by_source(self, name: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
        return "EVAL", _SOURCES[name].source, len(self._script_keys), *self._script_keys, *arguments

    async def _follow(
        self, streams: Mapping[str, Cursor], block_s: float, count: int, forget: str | None = None
    ) -> dict[str, list[Entry]]:
        """Entries after each stream's cursor, waiting for the first; the stream ``forget`` loses those before it."""
        async with bus_errors(), asyncio.timeout(max(0.0, block_s) + self._timeout_s):
            return _entries((await self._blocking.call_each(_reading(streams, block_s, count, forget)))[-1])

    async def _follow_and_run(
        self, streams: Mapping[str, Cursor], block_s: float, count: int, forget: str, name: str, *arguments: Any
    ) -> tuple[dict[str, list[Entry]], Any]:
        """The same, and the answer of the script ``name``, which runs when the read ends.

        Both are sent at once, and Redis goes on with what a connection has sent as soon as its read ends.
        """
        async with bus_errors(), asyncio.timeout(max(0.0, block_s) + self._timeout_s):
            try:
                commands = [*_reading(streams, block_s, count, forget), self._by_sha(name, arguments)]
                *_, found, answer = await self._blocking.call_each(commands)
            except NoScriptError:
                commands = [*_reading(streams, 0.0, count, forget), self._by_source(name, arguments)]
                *_, found, answer = await self._blocking.call_each(commands)
        return _entries(found), answer


def _reading(streams: Mapping[str, Cursor], block_s: float, count: int, forget: str | None) -> list[tuple[Any, ...]]:
    wait = ("BLOCK", math.ceil(block_s * 1000)) if block_s > 0 else ()
    read = ("XREAD", "COUNT", count, *wait, "STREAMS", *streams, *streams.values())
    if forget is None or streams[forget] == START:
        return [read]
    return [("XTRIM", forget, "MINID", following(streams[forget])), read]


def _entries(found: Any) -> dict[str, list[Entry]]:
    return {stream.decode(): [(entry.decode(), fields) for entry, fields in read] for stream, read in found or ()}


def following(cursor: Cursor) -> Cursor:
    """The smallest id after a cursor."""
    time_ms, _, number = cursor.partition("-")
    return f"{time_ms}-{int(number) + 1}"


def pairs(fields: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    """Names and values of a stream entry; names may repeat."""
    return zip((name.decode(errors="replace") for name in fields[::2]), fields[1::2], strict=True)


@asynccontextmanager
async def bus_errors() -> AsyncIterator[None]:
    """Turn what redis-py raises into the errors of the bus."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise BusUnavailable(f"Redis can't be reached: {error}") from error
    except RedisError as error:
        text = str(error)
        if "FENCED" in text:
            raise LeadershipLost(text) from None
        if isinstance(error, OutOfMemoryError) or "OOM " in text:  # Redis 6 wraps what a script raises
            raise BusFull("Redis is out of memory") from error
        if isinstance(error, ReadOnlyError) or text.startswith(_UNAVAILABLE):
            raise BusUnavailable(text) from error
        raise BusError(text) from error


def _script_keys(keys: Keys) -> tuple[str, ...]:
    """KEYS of every script, in the order of ``lib.lua``; with an empty name they are prefixes."""
    by_name = (keys.record, keys.tokens, keys.requests, lambda name: keys.work("prefill", name))
    more = (lambda name: keys.work("decode", name), keys.inflight, keys.replies, keys.control, keys.worker, keys.buried)
    return (
        *(key("") for key in (*by_name, *more)),
        keys.workers,
        keys.progress,
        keys.arrivals,
        keys.leader,
        keys.epoch,
        keys.led_by,
        keys.finished,
        keys.dead_letters,
        keys.busy,
    )
