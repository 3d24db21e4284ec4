"""What commands print: results on standard output, everything else on standard error."""

import sys
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from common.process import explain
from common.settings import Settings, load_settings

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_COLOURS = (36, 32, 35, 33, 34, 96, 92, 95, 93, 94)
"""ANSI codes, in the order in which processes get them."""


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with a message."""
    err.print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(code)


def checked_settings() -> Settings:
    """The settings; ends the command if one is wrong."""
    try:
        return load_settings()
    except ValidationError as error:
        err.print(explain("slos-serve", error), markup=False)
        raise typer.Exit(2) from None


class PrefixedLines:
    """Writes lines of several processes, each behind its name in a colour of its own if on a terminal."""

    def __init__(self, names: list[str], colour: bool | None = None) -> None:
        self._width = max(map(len, names), default=0)
        colour = out.is_terminal and not out.no_color if colour is None else colour
        self._prefixes = {name: self._prefix(name, index, colour) for index, name in enumerate(names)}

    def __call__(self, name: str, line: str) -> None:
        """Write one line."""
        sys.stdout.write(f"{self._prefixes[name]}{line}\n")
        sys.stdout.flush()

    def _prefix(self, name: str, index: int, colour: bool) -> str:
        text = f"{name:<{self._width}} | "
        if not colour:
            return text
        return f"\033[{_COLOURS[index % len(_COLOURS)]}m{text}\033[0m"
