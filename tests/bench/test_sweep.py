import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench import sweep
from bench.results import raw
from bench.sweep import main
from tests.common.engine.support import until

QUICK = (
    "--parts opt-poisson --scenarios coder --systems vllm,bound --seconds 5 --tune-seconds 2 --seeds 1 --workers 1 "
    "--curve 0 --jobs 1"
).split()


def run(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, int]:
    assert main([*QUICK, *options]) == 0
    found: dict[str, int] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_study_is_run_once_for_the_same_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "MEASURED", ("LICENSE",))
    folder = ("--folder", str(tmp_path))
    assert run(capsys, *folder)["studies"] == 1
    path = tmp_path / "sim-opt-poisson-coder.json"
    found = raw.read(path)
    assert set(found["scenarios"]["coder"]) == {"vllm", "bound"}
    raw.write(path, found | {"dirty": False})
    again = run(capsys, *folder)
    assert (again["studies"], again["kept"]) == (0, 1)
    assert run(capsys, *folder, "--force")["studies"] == 1


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_its_studies_end_with_it(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "bench.sweep", *QUICK, "--seconds", "3000", "--folder", str(tmp_path)]
    heard = partial(signal.signal, number, signal.SIG_DFL)  # also where the tests themselves run under nohup
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL, preexec_fn=heard)
    try:
        await until(lambda: bool(studies_in(tmp_path)), seconds=60)
        process.send_signal(number)
        assert await process.wait() in (128 + number, -number)
        await until(lambda: not studies_in(tmp_path))
    finally:
        end_studies_in(tmp_path)
        with suppress(ProcessLookupError):
            process.kill()


@pytest.mark.process
def test_they_end_too_if_a_signal_comes_while_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *args: Any, **options: Any) -> Future[Any]:
            super().submit(*args, **options)
            while not studies_in(tmp_path):
                time.sleep(0.01)
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "ThreadPoolExecutor", Interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            main([*QUICK, "--seconds", "3000", "--folder", str(tmp_path)])
        given_up_s = time.monotonic() + 10
        while studies_in(tmp_path) and time.monotonic() < given_up_s:
            time.sleep(0.01)
        assert not studies_in(tmp_path)
    finally:
        end_studies_in(tmp_path)


def studies_in(folder: Path) -> list[int]:
    """Processes of `bench.capacity`, its pool included, that write there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"bench.capacity" in words and any(os.fsencode(folder) in word for word in words):
                found.append(int(path.parent.name))
    return found


def end_studies_in(folder: Path) -> None:
    for pid in studies_in(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_what_would_be_run_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--folder", str(tmp_path), "--trace", "some/code.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 * 6
    replayed = [line for line in lines if "--arrivals trace" in line]
    assert len(replayed) == 6
    assert all("code.csv" in line for line in replayed)
    assert "--preset opt-13b-tp2-a100" in replayed[0]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--parts", "magic", "--list"])
    assert stopped.value.code == 2


def test_a_study_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--folder", str(tmp_path), "--systems", "magic"]) == 1
    assert "magic" in capsys.readouterr().err
