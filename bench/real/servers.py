"""Stock ``vllm serve`` processes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.cluster import ONE_THREAD, free_port, own_cpus, tail
from bench.real.cpu import keep_engine_to
from common.parent import ending_with_us

READY_TIMEOUT_S = 180.0
POLL_S = 0.2
END_TIMEOUT_S = 20.0
DEFAULT_CHUNK = 2048
"""vLLM's own default of ``max_num_batched_tokens`` for a CPU server."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """``chunk`` is ``max_num_batched_tokens``; ``transfer`` is a ``kv_transfer_config``."""

    model: str
    chunk: int = DEFAULT_CHUNK
    max_num_seqs: int = 64
    transfer: Mapping[str, Any] | None = None
    environment: Mapping[str, str] | None = None


class StockServer:
    """One ``vllm serve`` and its children, in a process group of its own."""

    def __init__(self, options: ServerOptions, log: Path) -> None:
        self._log = log
        self._port = free_port()
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **ONE_THREAD, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ending_with_us(command(options, self._port)),
                env=environment | dict(options.environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The api server's."""
        return self._process.pid

    async def ready(self) -> None:
        """Return once it is healthy; raises RuntimeError with the end of its log."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        async with aiohttp.ClientSession() as http:
            while time.monotonic() < deadline_s and self._process.poll() is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"{self.url}/health") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(POLL_S)
        raise RuntimeError(f"vllm serve did not start:\n{tail(self._log)}")

    def stop(self) -> None:
        """Ask it to end, then make sure that nothing of its group is left."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def command(options: ServerOptions, port: int) -> Sequence[str]:
    """``vllm serve`` with what must be equal among systems, and defaults for all else."""
    found = [str(Path(sys.executable).with_name("vllm")), "serve", options.model, "--host", "127.0.0.1"]
    found += ["--port", str(port), "--dtype", "float32", "--enforce-eager", "--seed", "0"]
    found += ["--max-num-batched-tokens", str(options.chunk), "--max-num-seqs", str(options.max_num_seqs)]
    found += ["--disable-log-stats", "--disable-uvicorn-access-log"]
    if options.transfer is not None:
        found += ["--kv-transfer-config", json.dumps(options.transfer)]
    return found


async def start_all(options: Sequence[ServerOptions], folder: Path) -> list[StockServer]:
    """Start servers side by side and wait for all of them; raises RuntimeError, and then none is left.

    Each engine gets a CPU of its own where there are enough, as the product's do.
    """
    servers = [StockServer(one, folder / f"vllm-{number}.log") for number, one in enumerate(options)]
    try:
        await asyncio.gather(*(server.ready() for server in servers))
        for number, server in enumerate(servers):
            if own := own_cpus(number, len(servers)):
                keep_engine_to(server.pid, own)
    except BaseException:
        stop_all(servers)
        raise
    return servers


def stop_all(servers: Sequence[StockServer]) -> None:
    """Stop them."""
    for server in servers:
        server.stop()
