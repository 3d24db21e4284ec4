"""What a worker can compute by a time: the definition, and the compiled twin held to it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from admission.budget import Demand, budget_tokens
from admission.core import budgets, shared_budget
from admission.lane_arrays import empty_load, fleet_of, refresh
from common.latency_model import LatencyModel, Piece
from tests.factories import FAST, make_worker

MODEL = LatencyModel((Piece(1e-4, 0.0, 0.005), Piece(2e-5, 0.0, 0.02)), k_seq=1e-4, k_kv=1e-8)
SECOND = 1_000_000

demand = st.builds(Demand, st.integers(0, 3 * SECOND), st.sampled_from([7_919, 10_000, 50_000, 100_000]))
time_us = st.one_of(st.integers(0, 5 * SECOND), st.sampled_from([10_000, 50_000, 100_000, 150_000, SECOND]))


def test_an_idle_worker_computes_what_its_batches_hold() -> None:
    per_second = 2048 / FAST.prefill_seconds(2048, 2048)
    assert abs(budget_tokens(FAST, 2048, [], 0, SECOND) - per_second) < 1


def test_each_due_token_takes_its_place_and_each_iteration_its_fixed_cost() -> None:
    free = budget_tokens(FAST, 10**9, [], 0, SECOND)
    used = budget_tokens(FAST, 10**9, [Demand(0, 100_000)], 0, SECOND)
    iterations = 11
    riders_s = (iterations * 2 - 1) * 1e-4  # the decoder and one prompt in each, in place of one prompt once
    assert abs(free - used - (iterations + ((iterations - 1) * 0.005 + riders_s) / 1e-4)) < 1e-6


def test_banked_slack_owes_nothing_until_it_is_used_up() -> None:
    assert Demand(SECOND, 100_000).tokens_by(SECOND - 1) == 0
    assert Demand(SECOND, 100_000).tokens_by(SECOND) == 1
    assert Demand(SECOND, 100_000).tokens_by(SECOND + 100_000) == 2


def test_decoders_that_can_not_keep_up_leave_less_than_nothing() -> None:
    assert budget_tokens(FAST, 2048, [Demand(0, 4_000)], 0, SECOND) < 0


@given(st.lists(demand, max_size=12), st.lists(demand, max_size=6), st.lists(time_us, min_size=1, max_size=12))
def test_the_compiled_budgets_are_the_defined_ones(first: list[Demand], second: list[Demand], times: list[int]) -> None:
    times = sorted(times)
    demands = sorted([(0, d) for d in first] + [(1, d) for d in second], key=lambda one: (one[0], one[1].tpot_us))
    fleet, load = fleet_of([make_worker(latency=MODEL), make_worker(latency=FAST)], 0.0, stretch=1.1), empty_load(2)
    for lane, group in enumerate((first, second)):
        load["decoders"][lane], load["context"][lane] = len(group), 1000.0
        refresh(fleet, load, lane)
    lanes = np.array([lane for lane, _ in demands], dtype=np.int64)
    slack = np.array([d.slack_us for _, d in demands], dtype=np.float64)
    tpot = np.array([d.tpot_us for _, d in demands], dtype=np.float64)
    got = budgets(fleet, load, lanes, slack, tpot, np.array(times, dtype=np.float64))
    for lane, (group, model) in enumerate(((first, MODEL), (second, FAST))):
        expected = [budget_tokens(model, 2048, group, 1000.0, t, stretch=1.1) for t in times]
        np.testing.assert_allclose(got[lane], expected, rtol=1e-9, atol=1e-6)


@given(st.lists(demand, max_size=8), time_us)
def test_a_faster_engine_never_has_a_smaller_budget(demands: list[Demand], at_us: int) -> None:
    fast, slow = (budget_tokens(MODEL, 2048, demands, 0, at_us, stretch=stretch) for stretch in (1.0, 1.5))
    assert fast >= slow - 1e-6


def test_the_shared_budget_leaves_out_backlogs_and_other_lanes_and_never_falls() -> None:
    each = np.array([[100.0, 50.0, 300.0], [10.0, 20.0, 30.0], [1e6, 1e6, 1e6]])
    shared = shared_budget(each, np.array([20.0, 25.0, 0.0]), np.array([True, True, False]))
    assert shared.tolist() == [30.0, 30.0, 285.0]
