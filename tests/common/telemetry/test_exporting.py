import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.settings import Settings
from common.telemetry import tracing
from tests.common.telemetry.scenario import START_S, have
from tests.otlp_receiver import OtlpReceiver


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_both_protocols_deliver_spans_and_headers(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=serving")
    assert tracing.setup_tracing(Settings(), "api", "api-1")
    tracing.record_span("one", None, START_S, START_S + 1)
    await receiver.until(have("one"))
    assert receiver.headers[0]["x-team"] == "serving"


async def test_what_waits_is_sent_at_shutdown(
    traced: Callable[..., OtlpReceiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    receiver = traced()
    tracing.record_span("last words", None, START_S, START_S)
    await asyncio.to_thread(tracing.shutdown_tracing)
    assert len(receiver.named("last words")) == 1
    assert not tracing.enabled()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
    ],
)
async def test_variables_that_turn_tracing_off_or_are_wrong_leave_it_off(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_endpoint)
    monkeypatch.setenv(name, value)
    assert not tracing.setup_tracing(Settings(), "api", "api-1")
    assert not tracing.enabled()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_is_away_costs_the_caller_nothing(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    receiver.stop()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")
    assert tracing.setup_tracing(Settings(), "api", "api-1")
    carriers = [tracing.record_span("lost", None, START_S, START_S) for _ in range(2000)]
    assert all(tracing.trace_id(carrier) for carrier in carriers)
    tracing.shutdown_tracing(timeout_s=0.5)
    assert not tracing.enabled()


async def test_spans_arrive_once_the_collector_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver() as first:
        port = first.port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    assert tracing.setup_tracing(Settings(), "api", "api-1")
    tracing.record_span("while away", None, START_S, START_S)
    with OtlpReceiver(port=port) as second:
        await second.until(have("while away"), timeout_s=30)
        tracing.shutdown_tracing()


async def test_a_forked_child_traces_only_after_its_own_setup(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    script = (
        "import os, sys\n"
        "from common.settings import Settings\n"
        "from common.telemetry import tracing\n"
        "assert tracing.setup_tracing(Settings(), 'parent', 'p')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(1 if tracing.enabled() else 0)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "tracing.record_span('parent', None, 1.0, 2.0)\n"
        "tracing.shutdown_tracing()\n"
        "sys.exit(code)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(receiver.named("parent")) == 1


async def test_the_receiver_runs_as_a_program_and_writes_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "spans.jsonl"
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.otlp_receiver", "--port", "0", "--out", str(out)), stdout=subprocess.PIPE
    )
    try:
        assert program.stdout is not None
        ports = json.loads(await program.stdout.readline())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{ports['grpc']}")
        tracing.setup_tracing(Settings(), "api", "api-1")
        tracing.record_span("written", None, START_S, START_S)
        await asyncio.to_thread(tracing.shutdown_tracing)
        assert json.loads(out.read_text().splitlines()[0])["name"] == "written"
    finally:
        program.terminate()
        await program.wait()
