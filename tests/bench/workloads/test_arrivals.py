import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads.arrivals import Bursts, bursty, gamma, phased, phases_of, poisson


def rng(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def cv(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def test_poisson_arrivals_have_the_rate_and_a_cv_of_one() -> None:
    times = poisson(5.0, 4000.0, rng())
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert cv(times) == pytest.approx(1.0, rel=0.05)


def test_gamma_arrivals_have_the_rate_and_the_cv() -> None:
    times = gamma(5.0, 8000.0, 2.5, rng())
    assert len(times) == pytest.approx(40_000, rel=0.05)
    assert cv(times) == pytest.approx(2.5, rel=0.08)


@pytest.mark.parametrize("rate", [0.5, 4.0, 40.0])
def test_phases_have_the_rate_and_the_cv_at_low_and_high_rates(rate: float) -> None:
    times = phased(rate, 40_000.0 / rate, Bursts(cv=3.0), rng())
    assert len(times) == pytest.approx(40_000, rel=0.15)
    assert cv(times) == pytest.approx(3.0, rel=0.12)


def test_bursts_are_clumps_within_on_phases() -> None:
    times = bursty(10.0, 6000.0, Bursts(3.0, on_s=2.0, off_s=4.0), rng())
    gaps = np.diff(times)
    within = gaps[gaps < 1.0]
    assert len(times) == pytest.approx(60_000, rel=0.15)
    assert within.mean() == pytest.approx(1 / 30.0, rel=0.15)
    assert within.std() / within.mean() == pytest.approx(3.0, rel=0.15)
    assert np.count_nonzero(gaps > 1.0) == pytest.approx(6000 / 6, rel=0.25)
    assert cv(times) > 4.0


@given(share=st.floats(0.2, 1.0))
def test_a_higher_rate_only_adds_arrivals_and_brings_them_forward(share: float) -> None:
    few, many = (bursty(rate, 60.0, Bursts(), rng()) for rate in (8.0 * share, 8.0))
    assert len(few) <= len(many)
    assert (few >= many[: len(few)] - 1e-9).all()


@given(rate=st.floats(0.05, 200.0), wanted=st.floats(1.2, 8.0), on_s=st.floats(0.2, 20.0), off_s=st.floats(0.2, 20.0))
def test_phases_give_the_cv_and_the_mean_rate_exactly(rate: float, wanted: float, on_s: float, off_s: float) -> None:
    phases = phases_of(rate, Bursts(wanted, on_s, off_s))
    mean = (phases.on_rate * phases.on_s + phases.off_rate * phases.off_s) / (phases.on_s + phases.off_s)
    assert mean == pytest.approx(rate, rel=1e-6)
    assert phases.cv == pytest.approx(wanted, rel=1e-3)


def test_more_arrives_in_on_phases_than_in_off_phases() -> None:
    phases = phases_of(10.0, Bursts())
    assert phases.on_rate > 10.0 > phases.off_rate > 0


def test_bursts_that_can_not_be_are_refused() -> None:
    with pytest.raises(ValueError, match="CV above 1"):
        Bursts(cv=1.0)
