"""``/healthz``, ``/readyz`` and ``/metrics`` of a process that serves no other HTTP, in its own event loop."""

import asyncio
import contextlib
import inspect
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.telemetry import metrics
from common.telemetry.logs import get_logger

Readiness = Callable[[], Awaitable[Mapping[str, bool]] | Mapping[str, bool]]
"""Named checks, each true if it holds; a process is ready when all do."""

CHECK_TIMEOUT_S = 2.0
_log = get_logger(__name__)


class HealthServer:
    """Serves until stopped; its requests are neither traced nor logged.

    ``port`` 0 takes a free one, which :attr:`port` tells once :meth:`start` has returned.
    """

    def __init__(self, host: str, port: int, readiness: Readiness, check_timeout_s: float = CHECK_TIMEOUT_S) -> None:
        self._host = host
        self._wanted_port = port
        self._routes = routes(readiness, check_timeout_s)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = port

    @property
    def url(self) -> str:
        """Where the server is reached, ``http://host:port``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Bind and serve; raises OSError if the port is taken."""
        listening = _bind(self._host, self._wanted_port)
        self.port = listening.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                Starlette(routes=self._routes),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]), name="health-server")
        self._serving.add_done_callback(lambda _task: listening.close())
        await self._server.listening.wait()

    async def stop(self) -> None:
        """Close the port and what is open on it; may be called twice, or without a start."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        serving, self._serving = self._serving, None
        await serving

    async def __aenter__(self) -> "HealthServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def routes(readiness: Readiness, check_timeout_s: float = CHECK_TIMEOUT_S) -> list[Route]:
    """The three routes, for a process that has an HTTP application of its own to mount them in."""

    async def readyz(_request: Request) -> Response:
        checks = await check(readiness, check_timeout_s)
        ready = all(checks.values())
        return JSONResponse({"ready": ready, "checks": checks}, status_code=200 if ready else 503)

    return [Route("/healthz", _healthz), Route("/readyz", readyz), Route("/metrics", _metrics)]


async def check(readiness: Readiness, timeout_s: float = CHECK_TIMEOUT_S) -> dict[str, bool]:
    """The checks' results; ``{"checks": False}`` if they raise or take longer than the timeout."""
    try:
        result = readiness()
        if inspect.isawaitable(result):
            result = await asyncio.wait_for(result, timeout_s)
        return dict(result)
    except Exception as error:
        _log.warning("a readiness check failed", error=type(error).__name__)
        return {"checks": False}


async def _healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(_request: Request) -> Response:
    page, content_type = metrics.render()
    return Response(page, headers={"content-type": content_type})


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals to the process and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signals: the process has its own handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and tell."""
        await super().startup(sockets)
        self.listening.set()


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening
