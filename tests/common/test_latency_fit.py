import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.latency_fit import TOKEN_FLOOR, fit, median_error
from common.latency_model import Batch, LatencyModel, Piece
from common.messages import StepSample

TRUE = LatencyModel((Piece(4e-5, 3e-4, 5e-3),), k_seq=1e-4, k_kv=2e-8, k_attn=1e-9)
SLOWER = LatencyModel((Piece(4e-4, 3e-3, 5e-2),), k_seq=1e-3, k_kv=2e-7, k_attn=1e-8)
ROOFLINE = LatencyModel((Piece(4e-5, 1e-4, 5e-3), Piece(1e-5, 1e-4, 2e-2)), k_seq=1e-4, k_kv=2e-8, k_attn=1e-9)
PREFILL = Batch(tokens=1024, seqs=1, attended=1024 * 512.0)


def make_samples(
    model: LatencyModel, count: int, seed: int = 1, prefill: float = 0.3, bad: float = 0.0
) -> list[StepSample]:
    """Steps as ``model`` says, 5 % noise; ``bad`` is the share that took 100 times as long or a hundredth."""
    rng = random.Random(seed)
    samples = []
    for _ in range(count):
        seqs = rng.randint(1, 64)
        tokens, attended, kv_tokens = seqs, 0.0, seqs * rng.randint(10, 2000)
        if rng.random() < prefill:
            chunk, context = rng.randint(1, 1024), rng.randint(0, 2000)
            tokens, attended = tokens + chunk, chunk * (context + chunk / 2)
        batch = Batch(tokens, seqs, kv_tokens, attended, rng.randint(0, 4))
        seconds = model.seconds(batch) * rng.lognormvariate(0, 0.05)
        if rng.random() < bad:
            seconds *= rng.choice((100.0, 0.01))
        samples.append(StepSample(tokens, seqs, kv_tokens, attended, batch.draft_steps, seconds))
    return samples


def test_without_samples_the_prior_stands() -> None:
    assert fit([], SLOWER) == SLOWER


@pytest.mark.parametrize("bad", [0.0, 0.2])
def test_a_prior_that_is_ten_times_too_slow_is_corrected_even_among_outliers(bad: float) -> None:
    model = fit(make_samples(TRUE, 2000, bad=bad), SLOWER)
    fresh = make_samples(TRUE, 500, seed=2)
    assert median_error(fresh, model) < 0.08
    assert model.seconds(PREFILL) == pytest.approx(TRUE.seconds(PREFILL), rel=0.1)


def test_long_pure_decode_leaves_the_prefill_terms_where_the_prior_has_them() -> None:
    model = fit(make_samples(TRUE, 5000, prefill=0.0), TRUE)
    assert model.k_attn == pytest.approx(TRUE.k_attn, rel=0.01)
    assert model.seconds(PREFILL) == pytest.approx(TRUE.seconds(PREFILL), rel=0.05)


def test_a_few_steps_with_prefill_count_among_very_many_without() -> None:
    samples = make_samples(TRUE, 5000, prefill=0.0) + make_samples(TRUE, 30, seed=3, prefill=1.0)
    model = fit(samples, SLOWER)
    assert model.seconds(PREFILL) == pytest.approx(TRUE.seconds(PREFILL), rel=0.15)


def test_the_pieces_of_a_roofline_are_fitted_apart() -> None:
    off = LatencyModel((Piece(8e-5, 1e-4, 2e-3), Piece(2e-6, 1e-4, 3e-2)), k_seq=1e-4, k_kv=2e-8, k_attn=1e-9)
    samples = make_samples(ROOFLINE, 2000)
    model = fit(samples, off)
    assert len(model.pieces) == 2
    assert median_error(samples, model) < 0.1 < median_error(samples, off)


def test_repeated_fits_to_steady_decode_do_not_drift() -> None:
    model = TRUE
    for seed in range(30):
        model = fit(make_samples(TRUE, 300, seed=seed, prefill=0.0), TRUE)
        assert model.seconds(PREFILL) == pytest.approx(TRUE.seconds(PREFILL), rel=0.1)


counts = st.integers(-5, 10**7)
numbers = st.floats(allow_nan=True, allow_infinity=True)
durations = st.one_of(st.floats(1e-9, 1e4), numbers)
step = st.builds(StepSample, counts, counts, counts, st.one_of(st.floats(0, 1e12), numbers), counts, durations)
coefficient = st.one_of(st.just(0.0), st.floats(1e-12, 1.0))
piece = st.builds(Piece, st.floats(1e-9, 1.0), coefficient, coefficient)
priors = st.builds(
    LatencyModel, st.lists(piece, min_size=1, max_size=3).map(tuple), coefficient, coefficient, coefficient
)


@given(st.lists(step, max_size=10), priors)
@settings(max_examples=100)
def test_whatever_was_measured_the_model_is_valid_and_never_worse_than_the_prior(
    samples: list[StepSample], prior: LatencyModel
) -> None:
    model = fit(samples, prior)
    assert math.isfinite(model.seconds(PREFILL))
    assert len(model.pieces) == len(prior.pieces)
    for fitted, before in zip(model.pieces, prior.pieces, strict=True):
        assert fitted.k_token >= TOKEN_FLOOR * before.k_token
    assert median_error(samples, model) <= median_error(samples, prior)
