import random

import pytest

from common.engine.least_squares import fit_grid
from common.errors import ProfileError
from common.latency_model import Batch, LatencyModel, Piece
from common.messages import StepSample
from common.presets import PRESETS

TRUTH = LatencyModel((Piece(1e-4, 0.0, 0.003),), k_seq=2e-5, k_kv=8e-7, k_attn=2e-8)


def make_samples(noise: float = 0.0, truth: LatencyModel = TRUTH) -> list[StepSample]:
    generator = random.Random(1)
    batches = [
        Batch(seqs, seqs, seqs * context) for seqs in (1, 2, 4, 8, 16, 32, 64) for context in (32, 200, 500, 1500)
    ]
    batches += [
        Batch(n, 1, 0, n * (context + n / 2))
        for n in (16, 32, 64, 128, 256, 512, 1024, 2048)
        for context in (0, 300, 1000)
    ]
    batches += [Batch(n * seqs, seqs, 0, seqs * n * n / 2) for n in (32, 128) for seqs in (4, 16)]
    return [
        StepSample(
            one.tokens, one.seqs, one.kv_tokens, one.attended, 0, truth.seconds(one) * (1 + generator.gauss(0, noise))
        )
        for one in batches
    ]


def test_exact_steps_give_the_exact_model() -> None:
    model = fit_grid(make_samples())
    assert model.pieces[0].k_token == pytest.approx(1e-4, rel=1e-3)
    assert model.pieces[0].base == pytest.approx(0.003, rel=1e-3)
    assert (model.k_seq, model.k_kv, model.k_attn) == pytest.approx((2e-5, 8e-7, 2e-8), rel=1e-2)


def test_a_disturbed_step_does_not_move_the_model() -> None:
    samples = make_samples()
    samples[5] = StepSample(1, 1, 32, 0.0, 0, 10 * TRUTH.decode_seconds(1, 32))
    model = fit_grid(samples)
    assert model.decode_seconds(8, 4000) == pytest.approx(TRUTH.decode_seconds(8, 4000), rel=0.02)


@pytest.mark.parametrize("name", ["llama2-7b-a100", "llama2-70b-tp4-h100", "llama3-8b-a100"])
def test_a_floor_under_the_slope_is_found_though_steps_vary(name: str) -> None:
    truth = PRESETS[name].latency
    model = fit_grid(make_samples(0.03, truth))
    assert len(model.pieces) == 2
    batches = [Batch(n, n, 500 * n) for n in (1, 16, 64)] + [Batch(n + 8, 9, 4000, n * n / 2) for n in (64, 400, 2000)]
    errors = [abs(model.seconds(batch) / truth.seconds(batch) - 1) for batch in batches]
    assert sum(errors) / len(errors) < 0.04


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_where_there_is_no_floor_one_piece_is_enough(noise: float) -> None:
    assert len(fit_grid(make_samples(noise)).pieces) == 1


def test_no_coefficient_is_negative_whatever_was_measured() -> None:
    samples = [StepSample(n, n, 100 * n, 0.0, 0, 1e-3 / n) for n in range(1, 20)]
    with pytest.raises(ProfileError):  # more tokens in less time: no cost per token is left
        fit_grid(samples)


def test_without_samples_there_is_no_model() -> None:
    with pytest.raises(ProfileError):
        fit_grid([])
