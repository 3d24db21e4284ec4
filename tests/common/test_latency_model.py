import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProfileError
from common.latency_model import Batch, LatencyModel, Piece

cost = st.floats(1e-6, 1e-2)
pieces = st.lists(st.builds(Piece, cost, cost, cost), min_size=1, max_size=3).map(tuple)
models = st.builds(LatencyModel, pieces, cost, cost, cost)


def test_a_batch_costs_the_sum_of_its_terms() -> None:
    model = LatencyModel((Piece(0.01, 0.1, 1.0),), k_seq=0.5, k_kv=0.001, k_attn=0.0001)
    batch = Batch(tokens=20, seqs=4, kv_tokens=300, attended=1000.0, draft_steps=3)
    assert model.seconds(batch) == pytest.approx(0.2 + 0.3 + 1.0 + 2.0 + 0.3 + 0.1)


def test_the_slowest_piece_counts() -> None:
    model = LatencyModel((Piece(0.0, 0.0, 1.0), Piece(0.01, 0.0, 0.0)))
    assert model.seconds(Batch(tokens=50)) == 1.0
    assert model.seconds(Batch(tokens=200)) == 2.0


def test_a_prefill_is_the_sum_of_its_chunks() -> None:
    model = LatencyModel((Piece(0.01, 0.0, 1.0),), k_seq=0.5, k_attn=0.0001)
    first = model.seconds(Batch(tokens=100, seqs=1, attended=100 * 50))
    second = model.seconds(Batch(tokens=50, seqs=1, attended=50 * (100 + 25)))
    assert model.prefill_seconds(150, 100) == pytest.approx(first + second)


def test_cached_tokens_are_read_and_not_computed() -> None:
    model = LatencyModel((Piece(0.01, 0.0, 1.0),), k_attn=0.0001)
    assert model.prefill_seconds(150, 100, cached_tokens=100) == pytest.approx(
        model.seconds(Batch(tokens=50, seqs=1, attended=50 * 125))
    )
    assert model.prefill_seconds(150, 100, cached_tokens=150) == 0.0


def test_a_decode_reads_its_context() -> None:
    model = LatencyModel((Piece(0.01, 0.0, 1.0),), k_seq=0.5, k_kv=0.001)
    assert model.decode_seconds(seqs=4, kv_tokens=300) == model.seconds(Batch(tokens=4, seqs=4, kv_tokens=300))


@given(models, st.integers(0, 5000), st.integers(0, 64), st.integers(0, 10_000))
def test_the_tokens_within_a_time_are_the_most_that_fit(model: LatencyModel, count: int, seqs: int, kv: int) -> None:
    seconds = model.seconds(Batch(tokens=count, seqs=seqs, kv_tokens=kv))
    fitting = model.tokens_within(seconds * (1 + 1e-9), seqs, kv)
    assert fitting >= count
    assert model.seconds(Batch(tokens=fitting, seqs=seqs, kv_tokens=kv)) <= seconds * (1 + 1e-6)
    assert model.seconds(Batch(tokens=fitting + 1, seqs=seqs, kv_tokens=kv)) > seconds * (1 - 1e-6)


def test_no_token_fits_into_no_time() -> None:
    model = LatencyModel((Piece(0.01, 0.0, 1.0),), k_seq=1.0)
    assert model.tokens_within(0.5) == 0
    assert model.tokens_within(2.0, seqs=3) == 0
    assert model.tokens_within(2.0) == 100


@given(models, st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 512))
def test_a_longer_prompt_never_takes_less(model: LatencyModel, one: int, other: int, chunk: int) -> None:
    short, long = sorted((one, other))
    assert model.prefill_seconds(short, chunk) <= model.prefill_seconds(long, chunk) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pieces": ()}, "finite and not negative"),
        ({"pieces": (Piece(-0.1, 0.0, 0.0),)}, "finite and not negative"),
        ({"pieces": (Piece(0.1, 0.0, math.nan),)}, "finite and not negative"),
        ({"k_seq": math.inf}, "finite and not negative"),
        ({"k_kv": -1.0}, "finite and not negative"),
        ({"k_attn": math.nan}, "finite and not negative"),
        ({"pieces": (Piece(0.0, 1.0, 1.0),)}, "positive cost per token"),
    ],
)
def test_impossible_coefficients_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        LatencyModel(**({"pieces": (Piece(0.1, 0.0, 0.0),)} | changes))


def test_a_slower_engine_takes_longer_for_everything() -> None:
    model = LatencyModel((Piece(0.01, 0.1, 1.0), Piece(0.02, 0.0, 0.1)), k_seq=0.5, k_kv=0.001, k_attn=0.0001)
    for batch in (Batch(1, 1), Batch(100, 4, 500, 700.0, 3), Batch(1000, 2)):
        assert model.scaled(2.5).seconds(batch) == pytest.approx(2.5 * model.seconds(batch))
