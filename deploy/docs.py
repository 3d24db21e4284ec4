"""Writes the settings table into docs/operations.md: ``make docs``."""

import re
from pathlib import Path

from common.cli.settings_table import markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
BEGIN, END = "<!-- settings: written by `make docs` -->", "<!-- end of settings -->"


def with_table(page: str) -> str:
    """The page with the present table."""
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    return between.sub(lambda _: f"{BEGIN}\n\n{markdown_table()}\n\n{END}", page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
