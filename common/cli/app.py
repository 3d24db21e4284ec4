"""The commands of ``slos-serve`` and what they share."""

from importlib.metadata import version
from typing import Annotated

import typer

from common.cli.generate import generate
from common.cli.letters import dead_letters
from common.cli.replay import replay
from common.cli.settings_table import settings
from common.cli.status import status
from common.cli.up import up

app = typer.Typer(
    help="Serves LLM requests so that each keeps its own latency promise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they can hold prompts and keys
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"slos-serve {version('slos-serve')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serves LLM requests so that each keeps its own latency promise."""


for command in (up, generate, status, settings, dead_letters, replay):
    app.command()(command)
