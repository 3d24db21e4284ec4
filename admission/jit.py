"""Compiles the planner's core with numba, or runs it as plain Python where that is asked for.

numba notices when the file of a compiled function changes, but not when that of a function that it calls does. So
what is compiled is kept in a folder named by a hash of all sources of this package.
"""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")

_HERE = Path(__file__).parent


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: compile at the first call, and keep the result on disk where a folder can be written.

    The plain function stays reachable, see :func:`plain`.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return function
    import numba

    folder = _folder()
    if folder is None:
        return cast("Callable[P, R]", numba.njit(function))
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        return cast("Callable[P, R]", numba.njit(cache=True)(function))
    finally:
        numba.config.CACHE_DIR = before


def plain(function: Callable[P, R]) -> Callable[P, R]:
    """The Python source of a compiled function; functions that it calls stay compiled."""
    return cast("Callable[P, R]", getattr(function, "py_func", function))


@cache
def _folder() -> Path | None:
    """Where compiled code of exactly these sources is kept; None if nowhere."""
    digest = hashlib.sha256()
    for source in sorted(_HERE.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"compiled-{digest.hexdigest()[:16]}"
    for base in (_HERE / "__pycache__", Path.home() / ".cache" / "slos-serve"):
        try:
            (base / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(base / name, os.W_OK):
            return base / name
    return None
