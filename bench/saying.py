"""Progress for people, on standard error: the last line of standard output is a command's result."""

import sys


def say(text: str) -> None:
    """One line, at once."""
    print(text, file=sys.stderr, flush=True)
