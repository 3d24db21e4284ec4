"""Compiles the planner's core with numba, or runs it as plain Python where that is asked for."""

import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: compile at the first call and keep the result on disk where that is possible.

    The plain function stays reachable, see :func:`plain`.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return function
    import numba

    try:
        return cast("Callable[P, R]", numba.njit(cache=True)(function))
    except RuntimeError:  # no folder for the cache is writable
        return cast("Callable[P, R]", numba.njit(function))


def plain(function: Callable[P, R]) -> Callable[P, R]:
    """The Python source of a compiled function; functions that it calls stay compiled."""
    return cast("Callable[P, R]", getattr(function, "py_func", function))
