import numpy as np
import pytest

from bench.workloads.lengths import Lengths
from bench.workloads.scenarios import SCENARIOS

PUBLISHED = sorted(
    {
        lengths
        for scenario in SCENARIOS.values()
        for kind in scenario.kinds
        for lengths in (kind.prompt, kind.output, kind.thinking)
        if lengths is not None
    },
    key=lambda lengths: (lengths.mean, lengths.std),
)


def drawn(lengths: Lengths, seed: int = 1, count: int = 60_000) -> np.ndarray:
    return lengths.draw(count, np.random.default_rng(seed))


@pytest.mark.parametrize("lengths", PUBLISHED)
def test_mean_and_deviation_are_as_published_to_three_percent(lengths: Lengths) -> None:
    values = drawn(lengths)
    assert float(values.mean()) == pytest.approx(lengths.mean, rel=0.03)
    assert float(values.std()) == pytest.approx(lengths.std, rel=0.03)


@pytest.mark.parametrize("lengths", [lengths for lengths in PUBLISHED if lengths.p99 is not None])
def test_the_99th_percentile_is_as_published_to_six_percent(lengths: Lengths) -> None:
    assert float(np.quantile(drawn(lengths), 0.99)) == pytest.approx(lengths.p99, rel=0.06)


def test_no_length_is_below_one_token() -> None:
    assert drawn(Lengths(2, 5, 20)).min() == 1


def test_the_same_seed_draws_the_same_lengths() -> None:
    lengths = Lengths(763, 424, 1591)
    assert (drawn(lengths, 7) == drawn(lengths, 7)).all()
    assert (drawn(lengths, 7) != drawn(lengths, 8)).any()
