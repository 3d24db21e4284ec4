"""Real Celery processes in tests: started on a Redis of the test's, awaited by what they log, ended by signals."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
WAIT_S = 30.0

Entry = dict[str, Any]


class CeleryProcess:
    """One ``celery -A common.celery_app`` in a process group of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.entries: list[Entry] = []
        self._news = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def logged(self, matches: Callable[[Entry], bool]) -> Entry:
        """The first log entry that matches, past or to come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S), self._news:
                await self._news.wait_for(lambda: any(map(matches, self.entries)) or self._reader.done())
        found = [entry for entry in self.entries if matches(entry)]
        assert found, f"not logged in time: {self.entries[-20:]}"
        return found[0]

    async def said(self, event: str) -> Entry:
        return await self.logged(lambda entry: event in entry["event"])

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after a signal; SIGKILL goes to the whole group."""
        if self.process.returncode is None:
            if how is signal.SIGKILL:
                os.killpg(self.process.pid, how)
            else:
                self.process.send_signal(how)
        async with asyncio.timeout(WAIT_S):
            await self._reader
            return await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": line.decode(errors="replace"), "level": "raw"}
            async with self._news:
                self.entries.append(entry)
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()


@asynccontextmanager
async def celery(*arguments: str, cwd: Path, **settings: object) -> AsyncIterator[CeleryProcess]:
    """A Celery process with these settings, killed at the end if it still runs."""
    ours = {f"SLOS_{name}".upper(): str(value) for name, value in settings.items()}
    environment = {**os.environ, **ours, "SLOS_LOG_FORMAT": "json", "PYTHONPATH": str(REPOSITORY)}
    command = (sys.executable, "-m", "celery", "-A", "common.celery_app", *arguments)
    started = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=environment,
        start_new_session=True,
        limit=2**20,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    process = CeleryProcess(started)
    try:
        yield process
    finally:
        await process.end(signal.SIGKILL)


def left_in(folder: Path) -> list[str]:
    """What a process has left in the folder that it ran in."""
    return [path.name for path in folder.iterdir()]
