"""``slos-serve status``: who is there, and what waits."""

import asyncio
import json
import time
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from common.bus.interface import QueueDepth
from common.bus.redis import RedisBus
from common.cli.connection import Target, target
from common.cli.console import checked_settings, fail, out
from common.cli.paths import state_file
from common.cli.state import read_state
from common.errors import BusError, TiersError
from common.messages import WorkerState
from common.settings import Settings
from common.tiers import load_tiers


def status(
    url: Annotated[str | None, typer.Option(help="the api  [default: the running one's]")] = None,
    redis_url: Annotated[str | None, typer.Option(envvar="SLOS_REDIS_URL", help="default: the running one's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as one JSON object")] = False,
) -> None:
    """Show api, planner, workers, queues and processes; exit code 1 unless the api is ready."""
    settings = checked_settings()
    try:
        report = asyncio.run(_collect(target(settings, url, redis_url), settings))
    except BusError as error:
        fail(f"no pipeline found: Redis: {error}. Start one with: slos-serve up")
    except TiersError as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)
    raise typer.Exit(0 if report["api"]["ready"] else 1)


async def _collect(where: Target, settings: Settings) -> dict[str, Any]:
    bus = RedisBus.connect(settings.model_copy(update={"redis_url": where.redis_url}))
    try:
        await bus.ping()
        workers = await bus.workers()
        depths = await bus.depths(load_tiers(settings.tiers_file).names)
        leader = await bus.leader()
    finally:
        await bus.close()
    now_s = time.time()
    running = read_state(state_file())
    return {
        "api": await _api(where.url),
        "leader": leader,
        "workers": [_worker(name, state, now_s) for name, state in sorted(workers.items())],
        "queues": {tier: _queue(depth, now_s) for tier, depth in depths.items()},
        "processes": [
            {"name": child.name, "pid": child.pid, "restarts": child.restarts}
            for child in (running.children if running else ())
        ],
    }


async def _api(url: str) -> dict[str, Any]:
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            response = await client.get(f"{url}/readyz")
        return {"url": url, "ready": response.is_success, "checks": response.json().get("checks", {})}
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        return {"url": url, "ready": False, "checks": {}, "error": type(error).__name__}


def _worker(name: str, state: WorkerState | None, now_s: float) -> dict[str, Any]:
    if state is None:
        return {"id": name, "state": "silent"}
    return {
        "id": name,
        "state": "draining" if state.draining else "ready" if state.ready else "starting",
        "prefers": state.prefers.value,
        "may": [stage.value for stage in state.may],
        "running": state.running,
        "queued": state.queued,
        "queued_tokens": state.queued_tokens,
        "free_blocks": state.free_blocks,
        "total_blocks": state.total_blocks,
        "step_ms": state.step_ms,
        "beat_age_s": round(max(0.0, now_s - state.beat_s), 3),
        "url": state.url,
    }


def _queue(depth: QueueDepth, now_s: float) -> dict[str, Any]:
    oldest = depth.oldest_arrival_s
    return {"waiting": depth.waiting, "oldest_wait_s": None if oldest is None else round(max(0.0, now_s - oldest), 3)}


def _print(report: dict[str, Any]) -> None:
    api = report["api"]
    missing = ", ".join(name for name, holds in api["checks"].items() if not holds) or api.get("error", "")
    out.print(f"api      {api['url']}  {'[green]ready[/]' if api['ready'] else f'[red]not ready[/] {missing}'}")
    out.print(f"planner  {report['leader'] or '[red]no leader[/]'}")
    workers = _table("worker", "state", "prefers", "running", "queued", "KV", "step ms", "silent")
    for worker in report["workers"]:
        workers.add_row(*_cells(worker))
    out.print(workers)
    queues = _table("tier", "waiting", "oldest s")
    for tier, depth in report["queues"].items():
        oldest = depth["oldest_wait_s"]
        queues.add_row(tier, str(depth["waiting"]), "-" if oldest is None else f"{oldest:.1f}")
    out.print(queues)
    if report["processes"]:
        processes = _table("process", "pid", "restarts")
        for process in report["processes"]:
            processes.add_row(process["name"], str(process["pid"] or "-"), str(process["restarts"]))
        out.print(processes)


def _table(*headers: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _cells(worker: dict[str, Any]) -> list[str]:
    if worker["state"] == "silent":
        return [worker["id"], "[red]silent[/]"]
    used = 1 - worker["free_blocks"] / max(1, worker["total_blocks"])
    return [
        worker["id"],
        worker["state"],
        worker["prefers"],
        str(worker["running"]),
        f"{worker['queued']} ({worker['queued_tokens']} tok)",
        f"{used:.0%}",
        f"{worker['step_ms']:.1f}",
        f"{worker['beat_age_s']:.1f} s",
    ]
