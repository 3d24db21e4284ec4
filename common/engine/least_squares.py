"""Fits the latency model to a designed grid of steps: non-negative least squares on relative errors, no prior.

For steps as they come in service, which excite only some of the terms, see :mod:`common.latency_fit`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.errors import ProfileError
from common.latency_model import LatencyModel, Piece
from common.messages import StepSample

Array = npt.NDArray[np.float64]

KEPT_SHARE = 0.95
"""Of the samples: the rest, those that the first fit misses most, were disturbed by something else."""

_SWEEPS = 20_000
_SETTLED = 1e-12


def fit_grid(samples: Sequence[StepSample]) -> LatencyModel:
    """A model of one linear piece; raises ProfileError if the samples do not allow one."""
    if not samples:
        raise ProfileError("the engine reported no steps")
    columns = [(one.tokens, one.draft_steps, 1.0, one.seqs, one.kv_tokens, one.attended) for one in samples]
    features = np.array(columns, dtype=float)
    rows = features / np.array([one.seconds for one in samples])[:, None]
    values = _solve(rows)
    misses = np.abs(rows @ values - 1)
    values = _solve(rows[misses <= np.quantile(misses, KEPT_SHARE)])
    k_token, k_draft, base, k_seq, k_kv, k_attn = (float(value) for value in values)
    return LatencyModel((Piece(k_token, k_draft, base),), k_seq, k_kv, k_attn)


def _solve(rows: Array) -> Array:
    """Minimise ``|rows @ x - 1|`` over x >= 0 by coordinate descent, on columns of equal size."""
    scale = np.sqrt((rows**2).sum(axis=0))
    scale[scale == 0] = 1.0
    scaled = rows / scale
    gram, right = scaled.T @ scaled, scaled.sum(axis=0)
    x = np.zeros(rows.shape[1])
    for _ in range(_SWEEPS):
        before = x.copy()
        for column in range(len(x)):
            if gram[column, column] > 0:
                rest = right[column] - gram[column] @ x + gram[column, column] * x[column]
                x[column] = max(0.0, rest / gram[column, column])
        if np.abs(x - before).max() <= _SETTLED * max(1.0, np.abs(x).max()):
            break
    return np.asarray(x / scale)
