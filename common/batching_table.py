"""What the batch policy plans with, in the form that compiled code takes; and the constants of the policy."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LATE = 4.0
"""A missed prompt counts as due at so many times its TTFT."""
LEAST = 16
"""Tokens of the smallest chunk worth its fixed cost, unless the prompt is late or ends with it."""
LOOSE = 2.0
"""A decode may skip a batch if it could still skip one of this many times the length."""
SKIP = 0.25
"""Decodes skip only where they would take more than this share of the batch."""
PACE = 0.5
"""Share of a batch that decodes may take before it becomes longer than the longest."""
HURRY = 2 / 3
"""Share of a batch that late decodes may take while prompts wait."""
WHOLE = 2.5
"""A first prompt may make a batch so many times longer than the longest rather than be cut."""
FAR = 4.0
"""Where no promise is due within so many batches of that length, all may be as long, and no decode skips any."""
WORTH = 3.0
"""No batch is cut for what is pulled to less than so many decode steps: it would be fixed cost for the most part."""
CREDIT = 256.0
"""Most tokens that best effort can be owed."""


ROW = np.dtype(
    [
        *((name, np.int64) for name in ("todo", "context", "checked", "drafts")),
        *((name, np.float64) for name in ("arrival", "due", "tpot")),
        *((name, np.bool_) for name in ("promised", "running", "remote", "decoding", "is_preempted")),
        *((name, np.int64) for name in ("granted", "order", "preempted")),
    ],
    align=True,
)
"""A candidate, and in the columns after it the tokens granted (-1: none) and two lists of row numbers."""


class Table(NamedTuple):
    """What is planned with: candidates, row numbers of each kind in order, pieces of the roofline, and numbers."""

    rows: Any
    decoders: Any
    prompts: Any
    spare: Any
    victims: Any
    pieces: Any
    now_s: float
    k_seq: float
    k_kv: float
    k_attn: float
    free_blocks: int
    block_size: int
    max_tokens: int
    max_seqs: int
    lookahead: int
    margin: float
    share: float
    longest_s: float
    whole_s: float
    credit: float


F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Machine code, kept on disk where there is a folder for it."""
    try:
        return numba.njit(cache=True)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor a home to write to
        return numba.njit(function)  # type: ignore[no-any-return]
