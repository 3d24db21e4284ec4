import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.common.engine.support import until

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


@pytest.mark.process
@pytest.mark.timeout(180)
@pytest.mark.parametrize("count", range(2, STARTED + 1))
async def test_what_a_command_has_started_ends_with_it(tmp_path: Path, count: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)}, preexec_fn=partial(signal.signal, signal.SIGTERM, signal.SIG_DFL),
    )  # fmt: skip
    try:
        await until(lambda: len(processes_of(tmp_path)) >= count, seconds=60)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 128 + signal.SIGTERM
        await until(lambda: not processes_of(tmp_path))
    finally:
        for pid in processes_of(tmp_path):
            os.kill(pid, signal.SIGKILL)
