"""The systems that are compared, each as processes that can be started, asked and stopped."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.cluster import READY_TIMEOUT_S, Cluster, free_port, start_pipeline
from bench.real.backends import Backend, Disaggregated, Product, Stock
from bench.real.job import AnswerError
from bench.real.load import probe
from bench.real.routing import Routing, make_router
from bench.real.servers import DEFAULT_CHUNK, ServerOptions, StockServer, start_all, stop_all

ENGINES = 2
MAX_SEQS = 64
COMPILED_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What a system is started with; equal ones need not be started anew.

    ``environment`` are settings of the product. ``replicas`` is how many servers stand behind a router.
    """

    kind: str
    model: str
    chunk: int = DEFAULT_CHUNK
    routing: Routing = "round-robin"
    replicas: int = ENGINES
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def tuning(self) -> str:
        """What was chosen by hand."""
        return (
            f"chunk {self.chunk}, {self.routing}"
            if self.kind != "ours"
            else " ".join("=".join(one) for one in self.environment)
        )

    @property
    def folder(self) -> str:
        """For its logs."""
        return re.sub(r"[^\w.-]+", "-", f"{self.kind} {self.tuning}").strip("-").lower()


@dataclass(frozen=True, slots=True)
class System:
    """A running system: how to ask it, its processes by name, and the Redis of the product."""

    backend: Backend
    processes: Mapping[str, int]
    redis_url: str | None = None


Start = Callable[[Setup, Path], AbstractAsyncContextManager[System]]


@asynccontextmanager
async def replicas(setup: Setup, folder: Path) -> AsyncIterator[System]:
    """Stock servers behind a router."""
    options = ServerOptions(setup.model, setup.chunk, MAX_SEQS)
    servers = await start_all([options] * setup.replicas, folder)
    try:
        urls = [server.url for server in servers]
        yield System(Stock(make_router(setup.routing, urls), setup.model, urls), _pids(servers))
    finally:
        stop_all(servers)


def _pids(servers: Sequence[StockServer]) -> dict[str, int]:
    return {f"server {number}": server.pid for number, server in enumerate(servers, start=1)}


@asynccontextmanager
async def disaggregated(setup: Setup, folder: Path) -> AsyncIterator[System]:
    """One stock prefill and one stock decode server."""
    servers = await start_all([_transferring(setup, role) for role in ("kv_producer", "kv_consumer")], folder)
    try:
        prefill, decode = (server.url for server in servers)
        yield System(Disaggregated([prefill], [decode], setup.model), _pids(servers))
    finally:
        stop_all(servers)


def _transferring(setup: Setup, role: str) -> ServerOptions:
    transfer = {
        "kv_connector": "GentleNixl",
        "kv_connector_module_path": "bench.real.gentle_nixl",
        "kv_role": role,
        "kv_connector_extra_config": {"num_threads": 0},
    }
    port = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}
    return ServerOptions(setup.model, setup.chunk, MAX_SEQS, transfer, port)


@asynccontextmanager
async def product(setup: Setup, folder: Path) -> AsyncIterator[System]:
    """Everything of this product with one prefill and one decode worker."""
    environment = {"SLOS_MODEL": setup.model, **dict(setup.environment)}
    with Cluster(folder, environment) as cluster:
        start_pipeline(cluster)
        await cluster.ready()
        await compiled(cluster)
        yield _running(cluster)


def _running(cluster: Cluster) -> System:
    processes = {name.rsplit("-", 1)[0]: child.process.pid for name, child in cluster.children.items()}
    assert cluster.redis.pid is not None
    return System(Product(cluster.url), processes | {"redis": cluster.redis.pid}, cluster.redis.url)


@asynccontextmanager
async def one_worker(model: str, folder: Path) -> AsyncIterator[System]:
    """This product with one worker that does everything, for comparison with :func:`one_server`."""
    with Cluster(folder, {"SLOS_MODEL": model}) as cluster:
        start_pipeline(cluster, prefill=1, decode=0)
        system = _running(cluster)
        await up(system.backend, cluster)
        await compiled(cluster)
        yield system


async def up(backend: Backend, cluster: Cluster) -> None:
    """Return once a request has been served; raises RuntimeError. The api is not "ready" without a decode worker."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        cluster.check_children()
        with contextlib.suppress(AnswerError, aiohttp.ClientError, TimeoutError):
            await probe(backend, 10.0)
            return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"not ready within {READY_TIMEOUT_S} s; logs are in {cluster.folder}")


@asynccontextmanager
async def one_server(model: str, folder: Path) -> AsyncIterator[System]:
    """One stock server."""
    async with replicas(Setup("vllm", model, replicas=1), folder) as system:
        yield system


async def compiled(cluster: Cluster) -> None:
    """Return once the planner's own policy plans; until it is compiled, a simpler one does. Raises TimeoutError."""
    logs = [child.log for name, child in cluster.children.items() if name.startswith("admission")]
    async with asyncio.timeout(COMPILED_TIMEOUT_S):
        while not all('"event": "planning"' in log.read_text(errors="replace") for log in logs):
            await asyncio.sleep(0.1)


KINDS: Mapping[str, Start] = {"vllm": replicas, "disagg": disaggregated, "ours": product}
