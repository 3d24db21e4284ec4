"""uvicorn inside of a process that has its own signal handling, and the order in which it goes down."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from api.ingress import Ingress
from api.middleware import Drain
from api.rehearsal import Rehearsal
from common.messages import End, State

POLL_S = 0.05
TICK_S = 0.1
CLOSE_S = 3
"""Longest time that connections have to take their last bytes once nothing is open any more."""


class Server(uvicorn.Server):
    """Serves an application until :meth:`drain`; ``port`` 0 takes a free one, which :attr:`url` tells."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_S,
        )
        super().__init__(config)
        self._app = app
        self._listening = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it is reached, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def open(self) -> None:
        """Return once it listens; raises OSError if it can't."""
        self._task = asyncio.create_task(self._serve_or_explain(), name="http-server")
        listening = asyncio.create_task(self._listening.wait())
        await asyncio.wait((self._task, listening), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._task.done():
            self._task.result()
            raise OSError(f"can't serve on {self.config.host}:{self.config.port}")

    async def wait(self, stop: asyncio.Event) -> None:
        """Return when ``stop`` is set; raises what ended the server before that."""
        assert self._task is not None
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((self._task, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._task.done():
            self._task.result()

    async def drain(self, patience_s: float) -> None:
        """Refuse what is new, let what is open end within ``patience_s``, end the rest with an error, and stop."""
        drain, ingress = self._app.state.drain, self._app.state.ingress
        assert isinstance(drain, Drain)
        assert isinstance(ingress, Ingress)
        drain.draining = True
        rehearsal = self._app.state.rehearsal
        assert isinstance(rehearsal, Rehearsal)
        await rehearsal.stop()
        until_s = asyncio.get_running_loop().time() + patience_s
        while ingress.open and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(POLL_S)
        ingress.abandon(End(State.FAILED, "api_shutdown"))
        self.should_exit = True
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _serve_or_explain(self) -> None:
        try:
            await self.serve()
        except SystemExit as error:  # uvicorn's way to say that the port is taken
            raise OSError(f"can't serve on {self.config.host}:{self.config.port}") from error

    async def main_loop(self) -> None:
        """As uvicorn's, but it ends as soon as it is told to."""
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TICK_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and tell."""
        await super().startup(sockets)
        self._listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signals: the process has its own handlers."""
        yield
