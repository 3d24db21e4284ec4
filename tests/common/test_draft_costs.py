import numpy as np
import pytest

from common.draft_costs import DraftCosts


def test_nothing_is_corrected_before_anything_is_measured() -> None:
    assert DraftCosts(4).factors(3).tolist() == [1.0] * 5


def test_lengths_between_measured_ones_cost_what_lies_between() -> None:
    costs = DraftCosts(4)
    costs.observe(3, 0, 0.01, 0.01)
    costs.observe(3, 4, 0.04, 0.01)
    assert costs.factors(3) == pytest.approx([1.0, 2**0.5, 2.0, 2**1.5, 4.0])


def test_each_number_of_sequences_has_its_own_cost_and_others_follow_the_nearest() -> None:
    costs = DraftCosts(1)
    for seqs, factor in ((2, 1.0), (40, 3.0)):
        for drafts in (0, 1):
            costs.observe(seqs, drafts, 0.01 * factor, 0.01)
    assert costs.factors(3) == pytest.approx([1.0, 1.0])
    assert costs.factors(500) == pytest.approx([3.0, 3.0])


def test_one_disturbed_step_moves_little_and_a_change_is_followed() -> None:
    costs = DraftCosts(1)
    for _ in range(50):
        costs.observe(4, 1, 0.01, 0.01)
    costs.observe(4, 1, 1.0, 0.01)
    assert costs.factors(4)[1] < 1.05
    for _ in range(100):
        costs.observe(4, 1, 0.02, 0.01)
    assert costs.factors(4)[1] == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("sample", [(4, 1, 0.0, 0.01), (4, 1, 0.01, 0.0), (4, 9, 0.01, 0.01), (4, -1, 0.01, 0.01)])
def test_what_can_not_be_is_left_out(sample: tuple[int, int, float, float]) -> None:
    costs = DraftCosts(2)
    costs.observe(*sample)
    assert np.all(costs.factors(4) == 1)
