"""redis-py's connections without its client and pools, whose bookkeeping for each command costs as much again.

A ``PING`` took 45 us of CPU over a connection, and 93 us with ``Redis.execute_command`` and a blocking pool.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError


class Connections:
    """At most ``most`` connections (None: as many as there are calls), made when needed; replies come as sent.

    A connection that Redis has closed is replaced unseen. One whose reply was not read to its end is closed.
    """

    def __init__(self, url: str, most: int | None, options: Mapping[str, Any]) -> None:
        self._pool = ConnectionPool.from_url(url, **options)  # reads the URL
        self._idle: list[AbstractConnection] = []
        self._free: contextlib.AbstractAsyncContextManager[None] = (
            contextlib.nullcontext() if most is None else asyncio.Semaphore(most)
        )
        self._closed = False

    @property
    def options(self) -> Mapping[str, Any]:
        """What connections are made with: host and port, or path."""
        return self._pool.connection_kwargs

    async def call(self, *command: Any) -> Any:
        """The reply to one command; raises what redis-py raises."""
        return (await self.call_each([command]))[-1]

    async def call_each(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies to commands that are sent together; raises the first error that Redis answers."""
        async with self._free:
            connection = await self._take()
            try:
                if len(commands) == 1:
                    await connection.send_command(*commands[0])
                else:
                    await connection.send_packed_command(connection.pack_commands(commands))
                replies = [await self._reply(connection) for _ in commands]
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            await self._put_back(connection)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    async def close(self) -> None:
        """Close what is idle now, and the rest when it has been used."""
        self._closed = True
        while self._idle:
            await self._idle.pop().disconnect()

    async def _reply(self, connection: AbstractConnection) -> Any:
        """An error that Redis answered is a reply: what follows it must be read too."""
        try:
            return await connection.read_response(disconnect_on_error=False)
        except ResponseError as error:
            return error

    async def _take(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected and not await connection.can_read():  # what has ended can be read, too
                return connection
            await connection.disconnect(nowait=True)
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _put_back(self, connection: AbstractConnection) -> None:
        if self._closed:
            await connection.disconnect()
        else:
            self._idle.append(connection)
