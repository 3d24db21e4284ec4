"""Where ``up`` keeps its files: in the checkout that it runs from, or in the user's cache folder."""

import os
from pathlib import Path


def home() -> Path:
    """The checkout, from whichever folder it is called; without one, ``~/.cache/slos-serve``."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists() and os.access(checkout, os.W_OK):
        return checkout
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slos-serve"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def data_dir() -> Path:
    """Redis's data and the state of a running pipeline."""
    return home() / "var"


def state_file(folder: Path | None = None) -> Path:
    """What ``up`` writes and other commands read, see :mod:`common.cli.state`."""
    return (folder or data_dir()) / "up.json"
