import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from common.bus.redis import RedisBus
from common.settings import Settings
from tests.api.conftest import MODEL
from tests.pipeline import running_pipeline

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@asynccontextmanager
async def running(redis_url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The process, and its address once it listens."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLOS_", "OTEL_"))}
    ours = {"SLOS_REDIS_URL": redis_url, "SLOS_PORT": "0", "SLOS_MODEL": str(MODEL), "SLOS_SHUTDOWN_S": "20"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api"), stderr=subprocess.PIPE, env={**inherited, **ours, "PYTHONPATH": os.getcwd()}
    )
    assert process.stderr is not None
    log = process.stderr
    try:
        url = None
        while url is None:
            line = (await log.readline()).decode()
            assert line, "the process ended"
            url = re.search(r"url=(http://\S+)", re.sub(r"\x1b\[[0-9;]*m", "", line))
        yield process, url[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_it_serves_through_redis_and_lets_open_answers_end_on_sigterm(redis_url: str) -> None:
    bus = RedisBus.connect(Settings(redis_url=redis_url))
    async with (
        bus,
        running_pipeline(bus),
        running(redis_url) as (process, url),
        httpx.AsyncClient(timeout=30) as client,
    ):
        await ready(client, url)
        body = {"prompt": "def add(a, b):", "max_tokens": 200, "stream": True, "ignore_eos": True}
        async with client.stream("POST", f"{url}/generate", json=body) as response:
            assert response.status_code == 200, await response.aread()
            lines = response.aiter_lines()
            while not (await anext(lines)).startswith("event: token"):
                pass
            process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines]
        assert "event: done" in rest
        assert await process.wait() == 0


async def ready(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(30):
        while (await client.get(f"{url}/readyz")).status_code != 200:
            await asyncio.sleep(0.05)
