"""``slos-serve settings``: every setting with its variable, default and meaning."""

from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.table import Table

from common.cli.console import out
from common.process import variable
from common.settings import Settings


def settings(markdown: Annotated[bool, typer.Option(help="as a Markdown table")] = False) -> None:
    """Print all settings: variable, default and meaning. Set them in the environment."""
    if markdown:
        typer.echo(markdown_table())
        return
    table = Table("variable", "default", "meaning", box=None, header_style="bold")
    for row in rows():
        table.add_row(*row)
    out.print(table)


def rows() -> list[tuple[str, str, str]]:
    """Variable, default and meaning of every setting, in the order of :class:`Settings`."""
    return [(variable(name), _default(field), field.description or "") for name, field in Settings.model_fields.items()]


def markdown_table() -> str:
    """The table as it stands in the documentation."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {f'`{default}`' if default else '-'} | {text} |" for name, default, text in rows()]
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None or value is PydanticUndefined:
        return ""
    return str(value)
