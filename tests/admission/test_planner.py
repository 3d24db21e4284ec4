"""Who is promised: the plain dynamic program, its compiled twin, and both against all subsets."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.late_jobs import greedy, select
from admission.planner import Candidate, best_set, brute_force, feasible, greedy_set, most_in_time

candidates = st.lists(
    st.builds(
        Candidate,
        work=st.integers(1, 100).map(float),
        kv=st.integers(0, 50).map(float),
        value=st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0]),
    ),
    min_size=1,
    max_size=9,
)
draws = st.tuples(candidates, st.lists(st.integers(0, 300), min_size=9, max_size=9), st.integers(0, 250))
Draw = tuple[list[Candidate], list[int], int]


def budget_of(draw: Draw) -> list[float]:
    return [float(value) for value in sorted(draw[1])[: len(draw[0])]]


def compiled(draw: Draw, budget: list[float] | None = None) -> list[int]:
    some, _, kv = draw
    work, need, value = (
        np.array([getattr(one, name) for one in some], dtype=np.float64) for name in ("work", "kv", "value")
    )
    taken = select(work, need, value, np.array(budget or budget_of(draw), dtype=np.float64), float(kv))
    return [int(i) for i in np.flatnonzero(taken)]


def value_of(some: list[Candidate], chosen: list[int] | tuple[int, ...]) -> float:
    return sum(some[i].value for i in chosen)


def test_a_large_request_gives_way_to_two_small_ones() -> None:
    some = [Candidate(10, 0, 1), Candidate(4, 0, 1), Candidate(4, 0, 1)]
    assert compiled((some, [10, 10, 12] + [12] * 6, 0)) == [1, 2]


def test_a_request_of_more_value_goes_first() -> None:
    some = [Candidate(4, 0, 1), Candidate(4, 0, 1), Candidate(10, 0, 3)]
    assert compiled((some, [10] * 9, 0)) == [2]


def test_kv_is_a_bound_of_its_own() -> None:
    some = [Candidate(1, 30, 1), Candidate(1, 10, 1), Candidate(1, 15, 1)]
    assert compiled((some, [10] * 9, 30)) == [1, 2]


@given(draws)
@settings(max_examples=400)
def test_the_compiled_program_finds_the_optimum(draw: Draw) -> None:
    some, budget = draw[0], budget_of(draw)
    chosen = compiled(draw)
    assert feasible(some, budget, draw[2], chosen)
    assert value_of(some, chosen) == brute_force(some, budget, draw[2])


@given(draws)
def test_the_plain_program_finds_the_optimum(draw: Draw) -> None:
    some, budget = draw[0], budget_of(draw)
    chosen = best_set(some, budget, draw[2])
    assert feasible(some, budget, draw[2], chosen)
    assert value_of(some, chosen) == brute_force(some, budget, draw[2])


@given(draws)
def test_moore_hodgson_finds_the_optimum_of_equal_values(draw: Draw) -> None:
    some = [Candidate(one.work, 0.0, 1.0) for one in draw[0]]
    assert len(most_in_time(some, budget_of(draw))) == brute_force(some, budget_of(draw), 0.0)
    assert len(compiled((some, draw[1], 0))) == brute_force(some, budget_of(draw), 0.0)


@given(draws)
def test_the_compiled_greedy_set_is_the_plain_one_and_never_better(draw: Draw) -> None:
    some, budget = draw[0], budget_of(draw)
    work, kv = np.array([one.work for one in some]), np.array([one.kv for one in some])
    taken = [int(i) for i in np.flatnonzero(greedy(work, kv, np.array(budget), float(draw[2])))]
    assert taken == list(greedy_set(some, budget, draw[2]))
    assert value_of(some, taken) <= value_of(some, compiled(draw))


@given(draws, st.integers(0, 8), st.integers(1, 100))
def test_a_later_deadline_never_costs_value(draw: Draw, which: int, more: int) -> None:
    some, budget = draw[0], budget_of(draw)
    which %= len(some)
    moved_to = next((i for i in range(len(some)) if budget[i] > budget[which] + more), len(some)) - 1
    moved = [one for i, one in enumerate(some) if i != which]
    moved.insert(max(which, moved_to), some[which])
    before = value_of(some, compiled(draw))
    later = list(budget)
    del later[which]
    later.insert(max(which, moved_to), max(budget[which] + more, budget[max(which, moved_to)]))
    later = list(np.maximum.accumulate(later))
    assert value_of(moved, compiled((moved, draw[1], draw[2]), later)) >= before


@given(draws, st.floats(1.0, 3.0))
def test_a_faster_engine_never_costs_value(draw: Draw, faster: float) -> None:
    budget = budget_of(draw)
    before = value_of(draw[0], compiled(draw))
    assert value_of(draw[0], compiled(draw, [one * faster for one in budget])) >= before


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_many_requests_are_selected_feasibly_and_no_worse_than_greedily(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(100, 600))
    work, kv = rng.integers(50, 3000, count).astype(float), rng.integers(50, 3000, count).astype(float)
    value = rng.choice([1.0, 1.5, 2.0, 5.0], count)
    budget = np.sort(rng.uniform(0, work.sum() * 0.7, count))
    limit = float(kv.sum() * rng.choice([0.3, 2.0]))
    taken, easy = select(work, kv, value, budget, limit), greedy(work, kv, budget, limit)
    used = np.cumsum(np.where(taken, work, 0.0))
    assert (used[taken] <= budget[taken] + 1e-6).all()
    assert kv[taken].sum() <= limit + 1e-6
    assert value[taken].sum() >= value[easy].sum()
