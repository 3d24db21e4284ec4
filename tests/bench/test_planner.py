"""The planner's benchmark measures what it says."""

from admission.policies.ours import Ours
from bench.planner import Fleet, percentile, quality


def test_the_selection_is_as_good_as_all_subsets_and_better_than_greedy() -> None:
    result = quality(cases=50, seed=3)
    assert result["dp_vs_brute_force"] == 1.0
    assert result["dp_vs_greedy"] > 1.0


def test_every_plan_is_timed() -> None:
    walls, cores = Fleet(2, 8, 1).time(Ours(), hold=8, plans=5)
    assert (len(walls), len(cores)) == (5, 5)
    assert min(walls) > 0


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
