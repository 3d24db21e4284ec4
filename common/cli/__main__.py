"""``python -m common.cli``: the same as ``slos-serve``."""

from common.cli import app

app(prog_name="slos-serve")
