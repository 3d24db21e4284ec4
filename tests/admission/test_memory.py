"""Output lengths learned online, and the KV expected from them."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from admission.core import kv_of
from admission.memory import BINS, HORIZONS, Survival, SurvivalLearner, kv_fits


def learned(lengths: list[int], ended: bool = True) -> Survival:
    learner = SurvivalLearner(refresh=1)
    for length in lengths:
        learner.observe("chat", length, ended)
    return learner.snapshot()


def test_while_nothing_is_known_every_request_may_reach_its_limit() -> None:
    assert max(Survival().expected_kv("chat", 500, 0, 100)) == 600


def test_nothing_is_expected_of_a_request_after_its_last_token() -> None:
    assert Survival().expected_kv("chat", 500, 0, 100)[-1] == 0


def test_short_outputs_are_expected_where_outputs_were_short() -> None:
    rng = random.Random(1)
    survival = learned([int(rng.expovariate(0.01)) for _ in range(2000)])
    for generated in (0, 200):
        assert 0.3 < survival.chance("chat", generated, 100) < 0.5  # e^-1, and a little for what is not known


def test_a_request_that_is_still_there_is_expected_to_stay_longer() -> None:
    survival = learned([10] * 100 + [1000] * 100)
    assert survival.chance("chat", 0, 200) < 0.6 < survival.chance("chat", 100, 200)


def test_what_was_cut_off_counts_as_longer() -> None:
    ended, cut = learned([20] * 100), learned([20] * 100, ended=False)
    assert ended.chance("chat", 0, 100) < 0.2 < cut.chance("chat", 0, 100)


def test_what_still_runs_counts_as_longer() -> None:
    learner = SurvivalLearner(refresh=1)
    for _ in range(50):
        learner.observe("chat", 20)
    alone = SurvivalLearner(refresh=1)
    for _ in range(50):
        alone.observe("chat", 20)
    assert learner.snapshot([("chat", 500)] * 50).chance("chat", 0, 100) > alone.snapshot().chance("chat", 0, 100) + 0.2


def test_old_outputs_are_forgotten() -> None:
    survival = learned([1000] * 500 + [10] * 3000)
    assert survival.chance("chat", 0, 200) < 0.1


def test_tables_are_computed_anew_only_when_enough_is_new() -> None:
    learner = SurvivalLearner(refresh=4)
    first = learner.snapshot()
    learner.observe("chat", 5)
    assert learner.snapshot() is first
    for _ in range(3):
        learner.observe("chat", 5)
    assert learner.snapshot().version == first.version + 1


def test_tiers_without_end_do_not_take_memory_without_end() -> None:
    learner = SurvivalLearner(refresh=1, most_tiers=3)
    for i in range(10):
        learner.observe(f"tier{i}", 5)
    assert len(learner.snapshot().tables) == 3


def test_kv_is_fine_up_to_its_limit_at_every_horizon() -> None:
    one = Survival().expected_kv("chat", 500, 0, 100)
    assert kv_fits([one], 620)
    assert not kv_fits([one, one], 620)


@given(st.lists(st.integers(0, 9000), max_size=60), st.integers(1, 9000), st.integers(0, 9000), st.integers(0, 9000))
def test_the_compiled_expectation_is_the_plain_one(lengths: list[int], context: int, generated: int, left: int) -> None:
    survival = learned(lengths)
    table = np.array(survival.tables.get("chat", (1.0,) * BINS))
    out = np.empty(len(HORIZONS))
    kv_of(table, float(context), generated, left, 1, out)
    np.testing.assert_allclose(out, survival.expected_kv("chat", context, generated, left), rtol=1e-12)


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 5000))
def test_chances_are_probabilities_that_fall_with_time(generated: int, more: int, further: int) -> None:
    survival = learned([10, 100, 1000, 3000] * 20)
    near, far = survival.chance("chat", generated, more), survival.chance("chat", generated, more + further)
    assert 0 < far <= near <= 1
