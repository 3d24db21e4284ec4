"""``slos-serve replay``: plan again what a planner's log says, and report what differs."""

from pathlib import Path
from typing import Annotated

import typer

from common.cli.console import fail
from common.errors import CodecError

MOST_SHOWN = 20


def replay(
    log: Annotated[Path, typer.Argument(help="a log that SLOS_PLAN_LOG named", exists=True, dir_okay=False)],
) -> None:
    """Run the planner over a log and report any decision that differs; none may. Exits with 1 if one does."""
    from admission.record import read_log
    from admission.record import replay as differences

    try:
        plans = sum(1 for _ in read_log(log))
        found = list(differences(log))
    except (CodecError, OSError) as error:
        fail(f"{log}: {error}")
    for one in found[:MOST_SHOWN]:
        logged = one.logged.reason if one.logged else "held"
        replayed = one.replayed.reason if one.replayed else "held"
        typer.echo(f"cycle {one.cycle}, request {one.request}: logged {logged}, now {replayed}")
    typer.echo(f"{plans} plans, {len(found)} decisions differ")
    if found:
        raise typer.Exit(1)
