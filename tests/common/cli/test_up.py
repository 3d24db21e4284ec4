import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from common.cli.processes import free_port
from common.cli.state import read_state

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]


@dataclass
class Up:
    process: asyncio.subprocess.Process
    url: str
    data: Path
    lines: list[str] = field(default_factory=list)

    async def says(self, *words: str, times: int = 1) -> str:
        """The line that holds all words, the ``times``-th of them."""
        assert self.process.stdout is not None
        while True:
            found = [line for line in self.lines if all(word in line for word in words)]
            if len(found) >= times:
                return found[times - 1]
            line = await self.process.stdout.readline()
            assert line, f"ended without saying {words}: {self.lines[-20:]}"
            self.lines.append(line.decode().rstrip())

    def pid(self, name: str) -> int:
        state = read_state(self.data / "up.json")
        assert state is not None
        (pid,) = (child.pid for child in state.children if child.name == name)
        assert pid is not None
        return pid

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += (await self.process.stdout.read()).decode().splitlines()
        return await self.process.wait()


FIXED_ROLES = {"SLOS_PREFILL_MAY": "prefill", "SLOS_DECODE_MAY": "decode"}
"""An answer needs both workers, so that one that has just been started again is known to run."""


@asynccontextmanager
async def running(data: Path, *options: str) -> AsyncIterator[Up]:
    port = free_port()
    argv = [sys.executable, "-m", "common.cli", "up", "--engine", "simulated", "--port", str(port), "--data", str(data)]
    process = await asyncio.create_subprocess_exec(
        *argv,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=data,
        env={name: value for name, value in os.environ.items() if not name.startswith(("SLOS_", "OTEL_"))}
        | FIXED_ROLES,
    )
    up = Up(process, f"http://127.0.0.1:{port}", data)
    try:
        yield up
    finally:
        if process.returncode is None:
            await up.end()


async def generate(up: Up) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60.0) as client:
        return await client.post(f"{up.url}/generate", json={"prompt": "def f(x):", "max_tokens": 8})


async def test_the_pipeline_starts_answers_survives_a_crash_and_drains(tmp_path: Path) -> None:
    async with running(tmp_path, "--no-celery") as up:
        await up.says("ready after")
        assert up.url in await up.says("try", "curl")
        assert (await generate(up)).json()["usage"]["completion_tokens"] == 8

        os.kill(up.pid("decode_worker"), signal.SIGKILL)
        await up.says("decode_worker ended (SIGKILL); starting it again")
        assert (await generate(up)).json()["usage"]["completion_tokens"] == 8

        assert await up.end() == 0
    stops = [line for line in up.lines if '"stopped"' in line or "[info     ] stopped" in line]
    assert [line.split("|")[0].strip() for line in stops[-4:]] == [
        "api",
        "admission",
        "prefill_worker",
        "decode_worker",
    ]
    assert not (tmp_path / "up.json").exists()
    assert (tmp_path / "redis" / "appendonlydir").exists() or list((tmp_path / "redis").glob("*.aof"))


async def test_a_second_one_in_the_same_place_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, "--no-celery") as first:
        await first.says("starting")
        while read_state(tmp_path / "up.json") is None:
            await asyncio.sleep(0.01)
        async with running(tmp_path) as second:
            assert first.url in await second.says("already running")
            assert await second.process.wait() == 1


async def test_a_redis_url_that_is_none_ends_everything_with_a_message(tmp_path: Path) -> None:
    async with running(tmp_path, "--no-celery", "--redis-url", "not-a-url") as up:
        await up.says("stopping:")
        assert await up.process.wait() == 1
