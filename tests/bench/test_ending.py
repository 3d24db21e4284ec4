import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.common.engine.support import until

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

STARTED = 5
"""Processes of the command when all is started: itself, Redis, the admission service, the workers and an api."""
COMMAND = "bench.control_plane --workers 2 --rate 5 --seconds 600 --output-tokens 5".split()


def processes_of(folder: Path) -> set[int]:
    """Those whose TMPDIR this is (it is inherited), and Redis, which works in there and overwrites its environment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            named = f"TMPDIR={folder}\0".encode() in (process / "environ").read_bytes()
            if named or str((process / "cwd").readlink()).startswith(str(folder)):
                found.add(int(process.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


@asynccontextmanager
async def started(folder: Path, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command, once it has started so many processes; in the end none is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(folder)}, preexec_fn=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL),
    )  # fmt: skip
    try:
        await until(lambda: len(processes_of(folder)) >= count, seconds=60)
        yield process
    finally:
        for pid in processes_of(folder):
            os.kill(pid, signal.SIGKILL)
        await process.wait()


@pytest.mark.parametrize("count", range(2, STARTED + 1))
async def test_what_a_command_has_started_ends_with_it(tmp_path: Path, count: int) -> None:
    async with started(tmp_path, count) as process:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM
        await until(lambda: not processes_of(tmp_path))


async def test_of_a_command_that_is_killed_nothing_but_redis_is_left(tmp_path: Path) -> None:
    async with started(tmp_path, STARTED) as process:
        process.kill()
        await process.wait()
        await until(lambda: len(processes_of(tmp_path)) <= 1)


IN_DESTRUCTOR = """
import os, signal, time
from bench.ending import exit_on_signals

class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

exit_on_signals()
Dropped()
time.sleep(100)
"""


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    ended = subprocess.run([sys.executable, "-c", IN_DESTRUCTOR], check=False, timeout=60, stderr=subprocess.PIPE)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr == b""
