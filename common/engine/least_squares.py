"""Fits the latency model to a designed grid of steps: non-negative least squares on relative errors, no prior.

For steps as they come in service, which excite only some of the terms, see :mod:`common.latency_fit`.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.errors import ProfileError
from common.latency_fit import model_of, non_negative, predict
from common.latency_model import LatencyModel
from common.messages import StepSample

Array = npt.NDArray[np.float64]

KEPT_SHARE = 0.95
"""Of the samples: the rest, those that the first fit misses most, were disturbed by something else."""

LEAST_OF_PIECE = 6
"""Samples on each piece of a roofline of two."""

BETTER, LEAST_GAIN = 0.85, 0.005
"""A second piece must bring the error on samples that it was not fitted to down to this share, and by so much."""

_ROUNDS = 20
_RIDGE = 1e-10


def fit_grid(samples: Sequence[StepSample]) -> LatencyModel:
    """A model of one linear piece, or of two where that predicts steps better that it was not fitted to.

    GPUs have a floor (weights are read whatever is computed) under a slope. Raises ProfileError if the samples allow no
    model.
    """
    if not samples:
        raise ProfileError("the engine reported no steps")
    columns = [(one.tokens, one.draft_steps, 1.0, one.seqs, one.kv_tokens, one.attended) for one in samples]
    features, seconds = np.array(columns, dtype=float), np.array([one.seconds for one in samples])
    one, two = (_unseen_error(features, seconds, pieces) for pieces in (1, 2))
    pieces = 2 if two < min(BETTER * one, one - LEAST_GAIN) else 1
    return model_of(_fit(features, seconds, pieces), pieces)


def _unseen_error(features: Array, seconds: Array, pieces: int) -> float:
    """Median relative error of each half of the samples on a fit to the other."""
    order = np.lexsort(features.T[::-1])  # by tokens, so that both halves span them
    errors: list[float] = []
    for seen, unseen in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        if len(seen) < 2 * LEAST_OF_PIECE:
            return math.inf
        values = _fit(features[seen], seconds[seen], pieces)
        errors += list(_misses(features[unseen], seconds[unseen], values, pieces))
    return float(np.median(errors))


def _fit(features: Array, seconds: Array, pieces: int) -> Array:
    """Coefficients of the best fit; a second one leaves out what the first misses most."""
    kept = np.arange(len(seconds))
    for _ in range(2):
        values = _one(features[kept], seconds[kept]) if pieces == 1 else _two(features[kept], seconds[kept])
        misses = _misses(features, seconds, values, pieces)
        kept = np.flatnonzero(misses <= np.quantile(misses, KEPT_SHARE))
    return values


def _one(features: Array, seconds: Array) -> Array:
    return _solve(features / seconds[:, None])


def _two(features: Array, seconds: Array) -> Array:
    """Alternates between fitting and sorting samples by piece, from several places where the second could begin."""
    best, least = np.concatenate([np.zeros(3), _one(features, seconds)]), math.inf
    tokens = np.unique(features[:, 0])
    for begins in tokens[:: max(1, len(tokens) // 8)]:
        active = (features[:, 0] >= begins).astype(np.intp)
        for _ in range(_ROUNDS):
            if min(active.sum(), len(active) - active.sum()) < LEAST_OF_PIECE:
                break
            wide = np.zeros((len(features), 9))
            for column in range(3):
                wide[np.arange(len(features)), 3 * active + column] = features[:, column]
            wide[:, 6:] = features[:, 3:]
            values = _solve(wide / seconds[:, None])
            error = float(np.median(_misses(features, seconds, values, 2)))
            if error < least:
                best, least = values, error
            before, active = active, predict(features, values, 2)[1]
            if np.array_equal(before, active):
                break
    return np.asarray(best)


def _misses(features: Array, seconds: Array, values: Array, pieces: int) -> Array:
    """Relative errors."""
    return np.asarray(np.abs(predict(features, values, pieces)[0] / seconds - 1))


def _solve(rows: Array) -> Array:
    """Minimise ``|rows @ x - 1|`` over x >= 0, on columns of equal size."""
    scale = np.sqrt((rows**2).sum(axis=0))
    scale[scale == 0] = 1.0
    scaled = rows / scale
    gram = scaled.T @ scaled + _RIDGE * np.eye(rows.shape[1])
    return np.asarray(non_negative(gram, scaled.sum(axis=0)) / scale)
