import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from common.process import settings_table, settle, variable
from common.settings import Settings
from tests.otlp_receiver import OtlpReceiver

PROGRAM = '''
"""Counts sheep."""
import asyncio, sys, time
from common.process import run
from common.telemetry import tracing
from common.telemetry.logs import get_logger

async def main(settings, stop):
    get_logger("sheep").info("awake", redis=settings.redis_url)
    tracing.record_span("counted", None, 1.0, 2.0)
    print("ready", flush=True)
    {body}

run("sheep", main)
'''
WAIT = "await stop.wait()"
STUBBORN = "await asyncio.Event().wait()"
BLOCKED = "time.sleep(50)"

pytestmark = pytest.mark.process

Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a process with this body of main, arguments and environment."""
    started: list[Process] = []

    async def start(body: str, *arguments: str, **environment: str) -> Process:
        path = tmp_path / "sheep.py"
        path.write_text(PROGRAM.format(body=body))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLOS_", "OTEL_"))}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", str(path), *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**inherited, "PYTHONPATH": os.getcwd(), **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ready(process: Process) -> None:
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"


async def outcome(process: Process) -> tuple[int | None, str, str]:
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_help_says_what_the_process_is_and_lists_every_setting(start: Start) -> None:
    code, out, _ = await outcome(await start(WAIT, "--help"))
    assert code == 0
    assert "Counts sheep." in out
    assert all(variable(name) in out for name in Settings.model_fields)
    assert "share of requests traced" in out


async def test_version_is_the_projects(start: Start) -> None:
    code, out, _ = await outcome(await start(WAIT, "--version"))
    assert code == 0
    assert out.startswith("sheep 0.")


async def test_an_unknown_argument_is_refused(start: Start) -> None:
    code, _, err = await outcome(await start(WAIT, "--frobnicate"))
    assert code == 2
    assert "--frobnicate" in err


async def test_what_runs_beside_does_not_keep_a_process_from_its_end(start: Start) -> None:
    work = "lambda: (print('compiling', flush=True), time.sleep(60))"
    process = await start(f"from common import beside; task = asyncio.create_task(beside.run({work})); {WAIT}")
    await ready(process)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"compiling\n"
    process.terminate()
    async with asyncio.timeout(20):
        code, _, err = await outcome(process)
    assert code == 0
    assert "stopped" in err


async def test_what_runs_beside_is_waited_for_and_may_fail(start: Start) -> None:
    body = "from common import beside; await beside.run(lambda: print('done', flush=True))"
    code, out, err = await outcome(await start(f"{body}; await beside.run(lambda: 1 / 0)"))
    assert code == 1
    assert out == "ready\ndone\n"
    assert "ZeroDivisionError" in err


async def test_a_wrong_setting_is_named_without_its_value(start: Start) -> None:
    process = await start(WAIT, SLOS_PORT="70001", SLOS_LOG_FORMAT="hunter2")
    code, out, err = await outcome(process)
    assert code == 2
    assert "SLOS_PORT: Input should be less than or equal to 65535" in err
    assert "SLOS_LOG_FORMAT" in err
    assert "70001" not in err
    assert "hunter2" not in err
    assert "Traceback" not in err
    assert "ready" not in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_main_end_in_order(start: Start, number: signal.Signals) -> None:
    process = await start(WAIT)
    await ready(process)
    process.send_signal(number)
    code, _, err = await outcome(process)
    assert code == 0
    assert number.name in err


@pytest.mark.parametrize("body", [STUBBORN, BLOCKED])
async def test_a_second_signal_ends_the_process_at_once(start: Start, body: str) -> None:
    process = await start(body)
    await ready(process)
    while process.returncode is None:
        # not process.send_signal: it may reap the child before asyncio does
        with contextlib.suppress(ProcessLookupError):  # reaped, and asyncio is yet to say so
            os.kill(process.pid, signal.SIGTERM)
        await asyncio.sleep(0.01)
    assert process.returncode == 128 + signal.SIGTERM


async def test_a_main_that_returns_ends_the_process_well(start: Start) -> None:
    code, _, _ = await outcome(await start("return"))
    assert code == 0


async def test_an_exception_is_logged_and_the_exit_code_is_one(start: Start) -> None:
    process = await start("raise RuntimeError('redis://:hunter2@db:6379/0 is gone')", SLOS_LOG_FORMAT="json")
    code, _, err = await outcome(process)
    assert code == 1
    assert "stopped by an error" in err
    assert "RuntimeError" in err
    assert "hunter2" not in err


async def test_spans_that_wait_are_sent_at_the_end(start: Start) -> None:
    with OtlpReceiver() as receiver:
        process = await start(
            WAIT, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc_endpoint, OTEL_BSP_SCHEDULE_DELAY="600000"
        )
        await ready(process)
        process.send_signal(signal.SIGTERM)
        code, _, err = await outcome(process)
        assert code == 0
        assert [span.name for span in receiver.spans] == ["counted"]
        assert receiver.spans[0].resource["service.name"] == "sheep"
        assert "Warning" not in err


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_is_away_does_not_keep_the_process_alive(start: Start, protocol: str) -> None:
    with OtlpReceiver() as receiver:
        away = receiver.grpc_endpoint
    process = await start("return", OTEL_EXPORTER_OTLP_ENDPOINT=away, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    code, _, err = await outcome(process)
    assert code == 0
    assert "spans were lost at shutdown" in err
    assert "Traceback" not in err


def test_the_table_can_be_narrowed_to_what_a_process_reads() -> None:
    table = settings_table(["redis_url", "trace_ratio"])
    assert [line.split()[0] for line in table.splitlines()] == ["SLOS_REDIS_URL", "SLOS_TRACE_RATIO"]


def test_what_was_loaded_is_not_collected_again() -> None:
    kept: list[list[int]] = [[] for _ in range(1000)]
    try:
        settle()
        assert gc.get_freeze_count() > len(kept)
        assert not any(one is kept for one in gc.get_objects())
    finally:
        gc.unfreeze()
