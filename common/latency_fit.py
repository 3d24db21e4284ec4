"""Fits the latency model to measured steps, safely: a pure function, called by the calibration task.

Recursive least squares with forgetting diverged, since steady decode does not excite the prefill terms. This is a
batch fit: decode-only steps and steps with prefill count as two rings of equal weight, errors are relative,
outliers are pulled in, coefficients are never negative, and a ridge keeps what was not measured at the prior.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.latency_model import LatencyModel, Piece
from common.messages import StepSample

Array = npt.NDArray[np.float64]

RING = 1024
"""Newest samples of each kind that a fit uses."""

RIDGE = 1.0
"""Weight of the prior, in samples that miss by 100 %."""

ROUNDS = 25
LEAST_CLIP, MOST_CLIP = 0.1, 0.9
MAX_STEP_S = 600.0
MAX_COUNT = 1e15
TOKEN_FLOOR = 1e-3


def fit(samples: Sequence[StepSample], prior: LatencyModel) -> LatencyModel:
    """The latency model that explains ``samples`` (oldest first), near ``prior`` where they say nothing.

    Always a valid model, and never worse than the prior by its median relative error on the samples. Samples
    that can't be (negative, not finite, empty or over ten minutes) are left out.
    """
    rings = _rings(samples)
    kept = [sample for ring in rings for sample in ring]
    if not kept:
        return prior
    features = np.array([_row(sample) for sample in kept])
    seconds = np.array([sample.seconds for sample in kept])
    start = _coefficients(prior)
    fitted = _refine(features, seconds, [len(ring) for ring in rings if ring], start, len(prior.pieces))
    floor = np.zeros_like(start)
    floor[: 3 * len(prior.pieces) : 3] = TOKEN_FLOOR * start[: 3 * len(prior.pieces) : 3]
    model = model_of(np.maximum(fitted, floor), len(prior.pieces))
    return model if median_error(samples, model) <= median_error(samples, prior) else prior


def median_error(samples: Sequence[StepSample], model: LatencyModel) -> float:
    """Median of ``|log(measured / predicted)|`` over the samples that :func:`fit` uses, 0 without any."""
    kept = [sample for ring in _rings(samples) for sample in ring]
    if not kept:
        return 0.0
    features = np.array([_row(sample) for sample in kept])
    predicted = predict(features, _coefficients(model), len(model.pieces))[0]
    return float(np.median(np.abs(np.log(np.array([sample.seconds for sample in kept]) / predicted))))


def _rings(samples: Sequence[StepSample]) -> tuple[list[StepSample], list[StepSample]]:
    valid = [sample for sample in samples if _usable(sample)]
    decode = [sample for sample in valid if sample.attended == 0]
    prefill = [sample for sample in valid if sample.attended > 0]
    return decode[-RING:], prefill[-RING:]


def _usable(sample: StepSample) -> bool:
    counts = (sample.tokens, sample.seqs, sample.kv_tokens, sample.attended, sample.draft_steps)
    if not all(0 <= count <= MAX_COUNT for count in counts):
        return False
    return sample.tokens > 0 and 1e-7 < sample.seconds < MAX_STEP_S


def _row(sample: StepSample) -> tuple[float, ...]:
    return (sample.tokens, sample.draft_steps, 1.0, sample.seqs, sample.kv_tokens, sample.attended)


def _coefficients(model: LatencyModel) -> Array:
    pieces = [value for piece in model.pieces for value in (piece.k_token, piece.k_draft, piece.base)]
    return np.array([*pieces, model.k_seq, model.k_kv, model.k_attn])


def model_of(values: Array, pieces: int) -> LatencyModel:
    """The model of so many pieces (three values each) and the additive terms; raises ProfileError if it is none."""
    numbers = [float(value) for value in values]
    parts = tuple(Piece(*numbers[3 * i : 3 * i + 3]) for i in range(pieces))
    return LatencyModel(parts, *numbers[3 * pieces :])


def predict(features: Array, values: Array, pieces: int) -> tuple[Array, npt.NDArray[np.intp]]:
    """Seconds of each sample and the roofline piece that it lies on."""
    linear = features[:, :3] @ values[: 3 * pieces].reshape(pieces, 3).T
    active = np.argmax(linear, axis=1)
    total = linear[np.arange(len(features)), active] + features[:, 3:] @ values[3 * pieces :]
    return np.maximum(total, 1e-9), active


def _refine(features: Array, seconds: Array, rings: Sequence[int], prior: Array, pieces: int) -> Array:
    """Alternate between fitting and pulling outliers in; relative to the prediction, ring by ring."""
    scale = _scale(features, seconds, prior, pieces)
    shift = float(np.exp(np.median(np.log(seconds / predict(features, prior, pieces)[0]))))
    values = prior * shift
    weight = np.concatenate([np.full(count, max(rings) / count) ** 0.5 for count in rings])
    best, least = prior, math.inf
    for number in range(ROUNDS):
        predicted, active = predict(features, values, pieces)
        error = np.log(seconds / predicted)
        middle = float(np.mean([np.median(np.abs(part)) for part in _split(error, rings)]))
        if number and middle < least:  # the first is the shifted prior: a start, not a result
            best, least = values, middle
        target = weight * (1 + _clip(error, rings))
        wide = np.zeros((len(features), len(prior)))
        for column in range(3):
            wide[np.arange(len(features)), 3 * active + column] = features[:, column]
        wide[:, 3 * pieces :] = features[:, 3:]
        rows = wide / predicted[:, None] * weight[:, None]
        values = _ridge_solve(rows, target, prior, scale)
        if not np.all(np.isfinite(values)):
            break
    return best


def _clip(error: Array, rings: Sequence[int]) -> Array:
    """Errors bounded by twice their ring's median size, so that a minority can't move the fit far."""
    bounds = [max(LEAST_CLIP, 2 * float(np.median(np.abs(part)))) for part in _split(error, rings)]
    limit = np.minimum(np.repeat(bounds, rings), MOST_CLIP)
    return np.asarray(np.clip(error, -limit, limit))


def _split(values: Array, rings: Sequence[int]) -> list[Array]:
    return list(np.split(values, np.cumsum(rings)[:-1]))


def _scale(features: Array, seconds: Array, prior: Array, pieces: int) -> Array:
    """How far each coefficient may move for one unit of ridge: its prior, or a tenth of what the steps allow."""
    columns = np.concatenate([np.tile(features[:, :3], (1, pieces)), features[:, 3:]], axis=1)
    largest = np.maximum(columns.max(axis=0), 1.0)
    return np.asarray(np.maximum(prior, 0.1 * float(np.median(seconds)) / largest))


def _ridge_solve(rows: Array, target: Array, prior: Array, scale: Array) -> Array:
    """Non-negative minimum of ``|rows @ c - target|^2 + RIDGE * |(c - prior) / scale|^2``."""
    scaled = rows * scale
    gram = scaled.T @ scaled + RIDGE * np.eye(len(prior))
    return np.asarray(scale * non_negative(gram, scaled.T @ target + RIDGE * prior / scale))


def non_negative(gram: Array, right: Array) -> Array:
    """Minimise ``x.gram.x/2 - right.x`` over x >= 0 by active sets (Lawson and Hanson), ``gram`` positive definite."""
    free = np.zeros(len(right), dtype=bool)
    x = np.zeros(len(right))
    for _ in range(4 * len(right)):
        gradient = right - gram @ x
        tolerance = 1e-10 * max(1.0, float(np.abs(right).max()))
        if free.all() or float(gradient[~free].max()) <= tolerance:
            break
        free[int(np.argmax(np.where(free, -np.inf, gradient)))] = True
        while True:
            trial = np.zeros_like(x)
            trial[free] = np.linalg.lstsq(gram[np.ix_(free, free)], right[free], rcond=None)[0]
            negative = np.flatnonzero(free & (trial <= 0))
            if not len(negative):
                break
            shares = x[negative] / np.maximum(x[negative] - trial[negative], 1e-300)
            x = x + float(shares.min()) * (trial - x)
            free[negative[np.argmin(shares)]] = False  # by name, so that rounding can't keep the loop going
            x[~free] = 0.0
        x = trial
    return np.asarray(x)
