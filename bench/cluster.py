"""A pipeline of real processes on this machine, for smoke tests, end-to-end tests and benchmarks.

Every process is started by this one and ended by pid; logs go to a file each. Nothing outside of ``folder`` is
written.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from common.engine.cpus import share
from common.parent import ending_with_us
from common.redis_server import RedisServer

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Two engines that spin with two threads each on two cores are 50 times slower than with one each."""

READY_TIMEOUT_S = 600.0
"""Workers measure an engine that nobody has measured on this machine, which took over three minutes on a slow one."""


@dataclass
class Child:
    """One process of the pipeline."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s: float = 90.0) -> int:
        """SIGTERM, and wait for the exit code; raises subprocess.TimeoutExpired."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@dataclass
class Cluster:
    """Redis, api, admission and workers; a context manager ends all of it.

    ``environment`` are settings for every process (``SLOS_*``, ``OTEL_*``).
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.redis = RedisServer(self.folder / "redis")
        self.port = free_port()
        self._started = 0

    @property
    def url(self) -> str:
        """The api."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.redis.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, module: str, **environment: str) -> Child:
        """Start ``python -m module`` with the cluster's settings and some of its own."""
        self._started += 1
        name = f"{module}-{self._started}"
        log = self.folder / f"{name}.log"
        base = {**os.environ, **ONE_THREAD, "SLOS_REDIS_URL": self.redis.url, "SLOS_PORT": str(self.port)}
        if self.redis.socket is not None:
            base["SLOS_REDIS_SOCKET"] = str(self.redis.socket)
        with log.open("wb") as out:
            process = subprocess.Popen(
                ending_with_us([sys.executable, "-m", module]),
                env={**base, "SLOS_LOG_FORMAT": "json", **self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children[name] = child
        return child

    async def ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until ``/readyz`` of the api says yes; raises RuntimeError with the log of a child that ended."""
        deadline_s = time.monotonic() + timeout_s
        async with httpx.AsyncClient() as client:
            while time.monotonic() < deadline_s:
                self.check_children()
                try:
                    if (await client.get(f"{self.url}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
        raise RuntimeError(f"not ready within {timeout_s} s; logs are in {self.folder}")

    def check_children(self) -> None:
        """Raises RuntimeError with the log of a child that ended."""
        for child in self.children.values():
            if not child.alive and child.process.returncode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"{child.name} ended with {child.process.returncode}:\n{tail(child.log)}")

    def close(self) -> None:
        """End everything, workers last to be asked and first to be killed."""
        for child in self.children.values():
            if child.alive:
                child.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + 15.0
        for child in self.children.values():
            try:
                child.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
        self.redis.stop()


def own_cpus(number: int, engines: int) -> tuple[int, ...]:
    """The CPU of one of several engines of one thread each; none where there are fewer CPUs than engines."""
    return share(sorted(os.sched_getaffinity(0)), number, engines, threads=1)


def start_pipeline(cluster: Cluster, prefill: int = 1, decode: int = 1) -> None:
    """Start one api, one planner and that many workers, each engine on a CPU of its own where there are enough."""
    cluster.start("admission")
    cluster.start("api")
    for number, kind in enumerate(["prefill_worker"] * prefill + ["decode_worker"] * decode):
        cluster.start(kind, SLOS_ENGINE_CPUS=",".join(map(str, own_cpus(number, prefill + decode))))


def tail(path: Path, lines: int = 30) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
