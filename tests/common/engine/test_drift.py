import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.engine.drift import HALF_S, KEPT, LEAST, MOST, SHARPEST, Drift
from common.latency_model import Batch, LatencyModel, Piece

MODEL = LatencyModel((Piece(5e-5, 1e-3, 5e-3),), k_seq=1e-4, k_kv=1e-7, k_attn=1e-9)
DECODES, PROMPT = Batch(16, 16, 4000), Batch(512, 1, attended=131_072.0)


def after(*slowdowns: float, batch: Batch = DECODES) -> Drift:
    drift = Drift(MODEL)
    for slowdown in slowdowns:
        drift.observe(batch, slowdown * MODEL.seconds(batch))
    return drift


def test_nothing_changes_until_a_step_differs() -> None:
    assert Drift(MODEL).latency == MODEL
    assert after(*[1.0] * 20).factor == 1.0


@pytest.mark.parametrize("slowdown", [0.5, 1.2, 4.0])
def test_twenty_steps_tell_how_fast_the_machine_is_now(slowdown: float) -> None:
    drift = after(*[1.0] * 200, *[slowdown] * 20)
    for batch in (DECODES, PROMPT):
        assert drift.latency.seconds(batch) == pytest.approx(slowdown * MODEL.seconds(batch), rel=0.12)
    assert drift.model == MODEL


def test_steps_that_vary_change_little() -> None:
    rng = random.Random(2)
    assert after(*(rng.gauss(1.0, 0.05) for _ in range(300))).factor == pytest.approx(1.0, abs=0.06)


def test_one_step_that_stood_still_changes_little_and_is_soon_forgotten() -> None:
    assert after(1.0, 1.0, 500.0).factor <= math.exp(0.2 * SHARPEST) + 0.01
    assert after(1.0, 1.0, 500.0, *[1.0] * 12).factor == pytest.approx(1.0, abs=0.02)


def test_with_another_model_the_newest_steps_count_again() -> None:
    drift = after(*[3.0] * KEPT)
    drift.use(MODEL.scaled(3.0))
    assert drift.factor == pytest.approx(1.0, abs=0.02)
    assert drift.latency.seconds(DECODES) == pytest.approx(3 * MODEL.seconds(DECODES), rel=0.03)


def test_without_steps_it_is_forgotten() -> None:
    drift = after(*[4.0] * KEPT)
    drift.rest(HALF_S)
    assert drift.factor == pytest.approx(2.0, rel=0.05)
    for _ in range(40):
        drift.rest(HALF_S)
    assert drift.factor == 1.0
    drift.use(MODEL)
    assert drift.factor == 1.0


def test_a_step_that_took_next_to_nothing_is_one_step() -> None:
    assert after(1.0, 5e-324, batch=Batch(0, 0, 0, 1.5e7)).factor >= math.exp(-0.2 * SHARPEST) - 0.01


@given(
    st.lists(
        st.tuples(
            st.builds(Batch, st.integers(0, 10**6), st.integers(0, 1000), st.integers(0, 10**9), st.floats(0, 1e15)),
            st.floats(),
        ),
        max_size=60,
    ),
    st.floats(0.01, 100.0),
)
def test_whatever_is_measured_the_model_stays_valid_and_bounded(steps: list[tuple[Batch, float]], other: float) -> None:
    drift = Drift(MODEL)
    for batch, seconds in steps:
        drift.observe(batch, seconds)
        assert 0.99 * LEAST <= drift.factor <= 1.01 * MOST
    drift.use(MODEL.scaled(other))
    assert 0.99 * LEAST <= drift.factor <= 1.01 * MOST
    assert drift.latency == drift.model.scaled(drift.factor)
    for _ in range(20):
        drift.observe(DECODES, drift.model.seconds(DECODES))
    assert drift.factor == pytest.approx(1.0, abs=0.1)
