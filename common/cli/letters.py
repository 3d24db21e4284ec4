"""``slos-serve dead-letters``: requests that were given up."""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from common.bus.interface import DeadLetter
from common.bus.redis import RedisBus
from common.cli.connection import target
from common.cli.console import checked_settings, fail, out
from common.errors import BusError
from common.settings import Settings


def dead_letters(
    count: Annotated[int, typer.Option(min=1, max=10_000, help="the newest this many")] = 20,
    redis_url: Annotated[str | None, typer.Option(envvar="SLOS_REDIS_URL", help="default: the running one's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON lines")] = False,
) -> None:
    """List the requests that were given up, newest first, with the reason."""
    settings = checked_settings()
    used = settings.model_copy(update={"redis_url": target(settings, redis_url=redis_url).redis_url})
    try:
        letters = asyncio.run(_read(used, count))
    except BusError as error:
        fail(f"Redis: {error}")
    if as_json:
        for letter in letters:
            typer.echo(json.dumps({"id": letter.id, "reason": letter.reason, "time_s": letter.time_s}))
        return
    table = Table("when", "request", "reason", box=None, header_style="bold")
    for letter in letters:
        when = datetime.fromtimestamp(letter.time_s).isoformat(sep=" ", timespec="seconds")
        table.add_row(when, letter.id or "-", letter.reason)
    out.print(table if letters else "none")


async def _read(settings: Settings, count: int) -> Sequence[DeadLetter]:
    bus = RedisBus.connect(settings)
    try:
        return await bus.dead_letters(count)
    finally:
        await bus.close()
