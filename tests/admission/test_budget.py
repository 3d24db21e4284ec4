"""What a worker can compute by a time: the definition, and the compiled twin held to it."""

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from admission.budget import Demand, budget_tokens
from admission.fleets import Fleets
from admission.lane_arrays import empty_load, refresh
from admission.timeline import (
    GUARD,
    add_decoder,
    add_work,
    column_of,
    ends_s,
    grid,
    shared,
    stays_in_time,
    timeline,
)
from common.latency_model import LatencyModel, Piece
from tests.factories import FAST, make_worker

MODEL = LatencyModel((Piece(1e-4, 0.0, 0.005), Piece(2e-5, 0.0, 0.02)), k_seq=1e-4, k_kv=1e-8)
SECOND = 1_000_000

demand = st.builds(Demand, st.integers(0, 3 * SECOND), st.sampled_from([7_919, 10_000, 50_000, 100_000]))
time_us = st.one_of(st.integers(0, 5 * SECOND), st.sampled_from([10_000, 50_000, 100_000, 150_000, SECOND]))


def test_an_idle_worker_computes_what_its_batches_hold() -> None:
    per_second = 2048 / FAST.prefill_seconds(2048, 2048)
    assert abs(budget_tokens(FAST, 2048, [], 0, SECOND) - per_second) < 1


def test_each_iteration_that_a_decoder_asks_for_has_its_fixed_cost() -> None:
    free = budget_tokens(FAST, 10**9, [], 0, SECOND + 50_000)
    used = budget_tokens(FAST, 10**9, [Demand(0, 100_000)], 0, SECOND + 50_000)
    iterations = 12  # eleven tokens are due, and the last batch ends then
    riders_s = (iterations * 2 - 1) * 1e-4  # the decoder and one prompt in each, in place of one prompt once
    assert abs(free - used - (2 * iterations - 1 + ((iterations - 1) * 0.005 + riders_s) / 1e-4)) < 1e-6


def test_no_iteration_is_charged_that_would_hold_less_than_it_costs() -> None:
    busy = [Demand(40_000, 50_000), Demand(45_000, 50_000), Demand(40_000, 100_000)]
    at_deadline = budget_tokens(
        MODEL, 2048, busy, 0, 90_000
    )  # two iterations: the third token of the first is due at 140
    assert budget_tokens(MODEL, 2048, busy, 0, 91_000) == at_deadline
    assert budget_tokens(MODEL, 2048, busy, 0, 94_999) == at_deadline
    assert budget_tokens(MODEL, 2048, busy, 0, 139_999) > at_deadline


def test_a_decoder_with_slack_to_spare_takes_no_part() -> None:
    demands = [Demand(20_000, 50_000), *[Demand(10 * SECOND, 50_000)] * 10]
    some, all_ = (budget_tokens(MODEL, 2048, demands, 0, 200_000, guard_us) for guard_us in (100_000, math.inf))
    assert some - all_ >= 5 * 11 - 7  # in five iterations, less the young one's tokens


def test_tokens_due_soon_after_are_in_the_batches_before() -> None:
    soon = [Demand(250_000, 50_000)]
    assert budget_tokens(FAST, 2048, soon, 0, 200_000, 60_000.0) < budget_tokens(FAST, 2048, soon, 0, 200_000, 40_000.0)


def test_banked_slack_owes_nothing_until_it_is_used_up() -> None:
    assert Demand(SECOND, 100_000).tokens_by(SECOND - 1) == 0
    assert Demand(SECOND, 100_000).tokens_by(SECOND) == 1
    assert Demand(SECOND, 100_000).tokens_by(SECOND + 100_000) == 2


def test_decoders_that_can_not_keep_up_leave_less_than_nothing() -> None:
    assert budget_tokens(FAST, 2048, [Demand(0, 4_000)], 0, SECOND) < 0


def line_of(first: list[Demand], second: list[Demand], times: list[int]) -> Any:
    demands = [(1, d) for d in second[1:]] + [(0, d) for d in first] + [(1, d) for d in second[:1]]  # in any order
    fleet, load = Fleets().of([make_worker(latency=MODEL), make_worker(latency=FAST)], 0.0, stretch=1.1), empty_load(2)
    for lane, group in enumerate((first, second)):
        load["decoders"][lane], load["context"][lane] = len(group), 1000.0
        refresh(fleet, load, lane)
    np.asarray(load)["first_s"] = 0.0
    lanes = np.array([lane for lane, _ in demands], dtype=np.int64)
    slack = np.array([d.slack_us for _, d in demands], dtype=np.float64)
    tpot = np.array([d.tpot_us for _, d in demands], dtype=np.float64)
    return fleet, timeline(fleet, load, lanes, slack, tpot, 0.0, np.array(times, dtype=np.float64))


def guard_us(fleet: Any, lane: int) -> float:
    return float(GUARD * fleet["longest_s"][lane] * SECOND)


@given(st.lists(demand, max_size=12), st.lists(demand, max_size=6), st.lists(time_us, min_size=1, max_size=12))
def test_the_compiled_budgets_are_the_best_of_the_defined_ones_so_far(
    first: list[Demand], second: list[Demand], times: list[int]
) -> None:
    times = sorted(times)
    fleet, line = line_of(first, second, times)
    for lane, (group, model) in enumerate(((first, MODEL), (second, FAST))):
        guard = guard_us(fleet, lane)
        expected = [budget_tokens(model, 2048, group, 1000.0, t, guard, stretch=1.1) for t in times]
        np.testing.assert_allclose(line.budget[lane], np.maximum.accumulate(expected), rtol=1e-9, atol=1e-6)


@given(st.lists(demand, max_size=8), st.integers(0, SECOND), st.lists(time_us, min_size=1, max_size=12))
def test_a_decoder_that_is_added_counts_as_one_that_was_there(
    demands: list[Demand], due: int, times: list[int]
) -> None:
    times = sorted(times)
    fleet, line = line_of(demands, [], times)
    add_decoder(fleet, line, 0, due, 50_000.0, 0.0)
    late = [*demands, Demand(due + 50_000, 50_000)]
    guard = guard_us(fleet, 0)
    expected = [budget_tokens(MODEL, 2048, late if t > due else demands, 1000.0, t, guard, stretch=1.1) for t in times]
    np.testing.assert_allclose(line.budget[0], np.maximum.accumulate(expected), rtol=1e-9, atol=1e-6)


@given(st.lists(demand, max_size=8), st.floats(1, 5000), st.lists(time_us, min_size=2, max_size=12), st.data())
def test_what_is_said_to_stay_in_time_does(demands: list[Demand], work: float, times: list[int], data: Any) -> None:
    times = sorted(set(times))
    fleet, line = line_of(demands, [], times)
    add_work(line, 0, float(data.draw(st.sampled_from(times))), data.draw(st.floats(1, 3000)))
    due = float(data.draw(st.sampled_from(times)))
    column = column_of(line, due)
    before = (line.work[0] <= line.budget[0]).all()
    if stays_in_time(fleet, line, 0, column, work, due, 50_000.0, 100.0):
        assert ends_s(fleet, line, 0, column, work) <= times[column] / SECOND
        add_work(line, 0, due, work)
        add_decoder(fleet, line, 0, due, 50_000.0, 100.0)
        assert (line.work[0] <= line.budget[0]).all() or not before


def test_a_grid_holds_all_that_must_be_on_it_and_few_of_the_others() -> None:
    deadlines, kept = np.arange(1000, dtype=np.float64) * 7919 + 7919, np.array([5.0, 123456.0, -3.0])
    times = grid(deadlines, kept)
    assert {5.0, 123456.0, 7919.0, 7919000.0} <= set(times.tolist())
    assert (np.diff(times) > 0).all()
    assert len(times) < 128
    assert grid(np.zeros(0), np.zeros(0)).size == 0


@given(st.lists(demand, max_size=8), time_us)
def test_a_faster_engine_never_has_a_smaller_budget(demands: list[Demand], at_us: int) -> None:
    fast, slow = (budget_tokens(MODEL, 2048, demands, 0, at_us, stretch=stretch) for stretch in (1.0, 1.5))
    assert fast >= slow - 1e-6


def test_the_shared_budget_leaves_out_what_is_promised_and_other_lanes_and_never_falls() -> None:
    _, line = line_of([], [], [1, 2, 3])
    line.budget[:] = np.array([[100.0, 300.0, 300.0], [10.0, 20.0, 30.0]])
    add_work(line, 0, 2.0, 280.0)
    add_work(line, 1, 1.0, 15.0)
    assert shared(line, np.array([True, True])).tolist() == [25.0, 25.0, 35.0]
    assert shared(line, np.array([False, True])).tolist() == [0.0, 5.0, 15.0]
