import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.bus.redis import RedisBus
from common.cli import app
from common.latency_model import LatencyModel, Piece
from common.messages import Stage, WorkerState
from common.settings import Settings
from tests.common.cli.servers import Answer, answering

READY = Answer(200, b'{"ready": true, "checks": {"leader": true}}', "application/json")
NOT_READY = Answer(503, b'{"ready": false, "checks": {"leader": true, "decode_worker": false}}', "application/json")


def make_worker_state(**changes: Any) -> WorkerState:
    values: dict[str, Any] = {
        "id": "prefill-1.abc",
        "prefers": Stage.PREFILL,
        "may": (Stage.PREFILL, Stage.DECODE),
        "fingerprint": "f",
        "model": "target",
        "max_model_len": 4096,
        "block_size": 32,
        "total_blocks": 100,
        "free_blocks": 75,
        "max_seqs": 64,
        "max_batch_tokens": 2048,
        "queued": 2,
        "queued_tokens": 300,
        "running": 3,
        "running_tokens": 900,
        "step_ms": 4.5,
        "latency": LatencyModel((Piece(k_token=1e-5, k_draft=0.0, base=0.001),), k_seq=1e-5),
        "draining": False,
        "ready": True,
        "url": "http://127.0.0.1:9100",
        "started_s": time.time(),
        "beat_s": time.time(),
    }
    return WorkerState(**(values | changes))


def on_bus(redis_url: str, work: Callable[[RedisBus], Coroutine[Any, Any, object]]) -> None:
    async def run() -> None:
        bus = RedisBus.connect(Settings(redis_url=redis_url))
        try:
            await work(bus)
        finally:
            await bus.close()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("status", "connection"):
        monkeypatch.setattr(f"common.cli.{module}.state_file", lambda: tmp_path / "up.json")


def test_the_report_holds_workers_queues_leader_and_the_api(redis_url: str) -> None:
    async def prepare(bus: RedisBus) -> None:
        await bus.beat(make_worker_state(), ttl_s=60.0)
        await bus.lead("planner-1", ttl_s=60.0)

    on_bus(redis_url, prepare)
    with answering(READY) as api:
        result = CliRunner().invoke(app, ["status", "--json", "--url", api.url, "--redis-url", redis_url])
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["api"] == {"url": api.url, "ready": True, "checks": {"leader": True}}
    assert report["leader"] == "planner-1"
    assert report["queues"]["chat"] == {"waiting": 0, "oldest_wait_s": None}
    (worker,) = report["workers"]
    assert (worker["id"], worker["state"], worker["running"], worker["queued"]) == ("prefill-1.abc", "ready", 3, 2)
    assert report["processes"] == []


def test_an_api_that_is_not_ready_fails_and_says_what_is_missing(redis_url: str) -> None:
    with answering(NOT_READY) as api:
        result = CliRunner().invoke(app, ["status", "--url", api.url, "--redis-url", redis_url])
    assert result.exit_code == 1
    assert "not ready decode_worker" in result.stdout
    assert "no leader" in result.stdout


def test_the_table_shows_a_worker_s_load(redis_url: str) -> None:
    on_bus(redis_url, lambda bus: bus.beat(make_worker_state(draining=True), ttl_s=60.0))
    with answering(READY) as api:
        shown = CliRunner().invoke(app, ["status", "--url", api.url, "--redis-url", redis_url]).stdout
    (line,) = (line for line in shown.splitlines() if "prefill-1.abc" in line)
    assert all(part in line for part in ("draining", "2 (300 tok)", "25%", "4.5"))


def test_a_worker_whose_heartbeat_has_run_out_is_silent(redis_url: str) -> None:
    on_bus(redis_url, lambda bus: bus.beat(make_worker_state(), ttl_s=0.001))
    with answering(READY) as api:
        arguments = ["status", "--json", "--url", api.url, "--redis-url", redis_url]
        workers = json.loads(CliRunner().invoke(app, arguments).stdout)["workers"]
    assert workers == [{"id": "prefill-1.abc", "state": "silent"}]


def test_no_redis_says_how_to_start_a_pipeline() -> None:
    result = CliRunner().invoke(app, ["status", "--redis-url", "redis://127.0.0.1:1/0"])
    assert result.exit_code == 1
    assert "slos-serve up" in result.stderr


def test_no_dead_letters_is_said_so(redis_url: str) -> None:
    assert CliRunner().invoke(app, ["dead-letters", "--redis-url", redis_url]).stdout == "none\n"
