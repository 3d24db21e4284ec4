"""``slos-serve up``: the whole pipeline on this machine, without Docker."""

import asyncio
import contextlib
import os
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import httpx
import typer

from common.cli.console import PrefixedLines, checked_settings, fail
from common.cli.engines import Machine
from common.cli.paths import data_dir, home, state_file
from common.cli.processes import Plan, is_free, pipeline
from common.cli.state import UpState, read_state, remove_state, write_state
from common.cli.supervisor import Child, ChildGaveUp, Supervisor
from common.redis_server import NoRedis
from common.settings import Settings

READY_POLL_S = 0.25
NEWS_S = 10.0
PROMPT = "def fibonacci(n):"


def up(
    prefill: Annotated[int, typer.Option(min=1, max=64, help="prefill workers")] = 1,
    decode: Annotated[int, typer.Option(min=1, max=64, help="decode workers")] = 1,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port of the api  [default: SLOS_PORT, 8000]")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="vllm or simulated  [default: SLOS_ENGINE, vllm]")] = None,
    redis_url: Annotated[str | None, typer.Option(envvar="SLOS_REDIS_URL", help="use this Redis; starts none")] = None,
    redis_port: Annotated[
        int, typer.Option(min=0, max=65535, help="port of the Redis that is started; 0: a free one")
    ] = 0,
    celery: Annotated[bool, typer.Option(help="run Celery's worker and beat (offline batches, retention)")] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of one engine  [default: its share]")] = None,
    data: Annotated[Path | None, typer.Option(help="folder for data and state  [default: var]")] = None,
) -> None:
    """Start the whole pipeline on this machine, say where it is, and run until Ctrl-C, which drains it."""
    for name, value in (("SLOS_PORT", port), ("SLOS_ENGINE", engine)):
        if value is not None:
            os.environ[name] = str(value)
    settings = checked_settings()
    folder = data or data_dir()
    state = state_file(folder)
    running = read_state(state)
    if running is not None:
        fail(f"already running at {running.url} (process {running.pid}); stop it first, or give another --data")
    if not is_free(settings.host, settings.port):
        fail(f"port {settings.port} of {settings.host} is taken: give another with --port")
    try:
        plan = Plan(prefill, decode, celery, redis_url, redis_port, threads)
        children, used_redis = pipeline(plan, settings, Machine.here(), folder)
    except NoRedis as error:
        fail(str(error))
    up_state = UpState(os.getpid(), f"http://{settings.host}:{settings.port}", used_redis, time.time())
    raise typer.Exit(asyncio.run(_run(children, up_state, state, settings)))


async def _run(children: Sequence[Child], state: UpState, path: Path, settings: Settings) -> int:
    write = PrefixedLines([*(child.name for child in children), "up"])
    supervisor = Supervisor(
        children,
        output=write,
        event=lambda text: write("up", text),
        changed=lambda status: write_state(path, state, status),
        cwd=home(),
    )
    stop = asyncio.Event()
    _on_signals(stop, supervisor, write)
    watch: asyncio.Task[None] | None = None
    code = 0
    try:
        write("up", f"starting {', '.join(child.name for child in children)}")
        await supervisor.start()
        watch = asyncio.create_task(_announce(state, supervisor, settings, write))
        await supervisor.wait(stop)
    except (ChildGaveUp, TimeoutError) as error:
        write("up", f"stopping: {error or 'Redis does not answer'}")
        code = 1
    finally:
        if watch is not None:
            watch.cancel()
        await supervisor.close()
        remove_state(path)
    write("up", "stopped")
    return code


def _on_signals(stop: asyncio.Event, supervisor: Supervisor, write: PrefixedLines) -> None:
    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            write("up", f"{number.name} again: ending everything at once")
            supervisor.kill()
            return
        write("up", f"{number.name}: draining; a second one ends everything at once")
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)


async def _announce(state: UpState, supervisor: Supervisor, settings: Settings, write: PrefixedLines) -> None:
    """Say what is still missing, and once everything is there, where it is."""
    begun = asyncio.get_running_loop().time()
    told = begun
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
        while True:
            missing = await _missing(client, state.url)
            now = asyncio.get_running_loop().time()
            if not missing:
                break
            if now - told >= NEWS_S:
                write("up", f"not ready after {now - begun:.0f} s: {missing}")
                told = now
            await asyncio.sleep(READY_POLL_S)
    supervisor.settled()
    for line in _welcome(state, settings, now - begun):
        write("up", line)


async def _missing(client: httpx.AsyncClient, url: str) -> str:
    """What ``/readyz`` says is missing; empty once the pipeline is ready."""
    with contextlib.suppress(httpx.HTTPError, ValueError, AttributeError):
        response = await client.get(f"{url}/readyz")
        if response.is_success:
            return ""
        checks = response.json()
        checks = checks.get("checks", checks)
        return "waiting for " + ", ".join(str(name) for name, holds in checks.items() if holds is False)
    return "the api does not answer yet"


def _welcome(state: UpState, settings: Settings, took_s: float) -> list[str]:
    key = " -H 'Authorization: Bearer '$SLOS_API_KEY" if settings.api_keys else ""
    body = f'{{"prompt": "{PROMPT}", "max_tokens": 48, "tier": "code"}}'
    return [
        f"ready after {took_s:.0f} s",
        f"  api    {state.url}  (docs: {state.url}/docs, metrics: {state.url}/metrics)",
        f"  redis  {httpx.URL(state.redis_url).copy_with(password=None)}",
        f"  try    curl {state.url}/generate{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        f"  or     slos-serve generate {shlex.quote(PROMPT)} --stream;  slos-serve status",
        "  stop   Ctrl-C",
    ]
