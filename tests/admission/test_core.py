"""What runs becomes load by worker."""

import math
from typing import Any

import numpy as np
import pytest

from admission.core import kv_of, line_up, tally
from admission.fleets import Fleets
from admission.jit import compiled, plain
from admission.lane_arrays import LOAD, empty_load, ends_after, lane_numbers, refresh
from admission.memory import BINS, HORIZONS
from admission.plan import Running, Worker
from admission.table import RunningTable
from admission.timeline import timeline
from common.slo import Objective
from tests.factories import FAST, make_running, make_worker

NOW_S = 100.0


def loaded(
    running: list[Running], workers: list[Worker]
) -> tuple[dict[str, np.ndarray], list[tuple[int, float, float]]]:
    table = RunningTable(running)
    fleet, load = Fleets().of(workers, NOW_S), empty_load(len(workers))
    lane_of = lane_numbers(table.worker_names.index, {worker.id: i for i, worker in enumerate(workers)})
    lane, slack, tpot = np.empty(len(table), np.int64), np.empty(len(table)), np.empty(len(table))
    tiers = np.zeros(len(table.tier_names.index) or 1, np.int64)
    count = tally(table.columns, lane_of, tiers, np.ones((1, BINS)), fleet, load, NOW_S, lane, slack, tpot)
    order = np.flatnonzero(table.columns["todo"])
    order = order[np.argsort(table.columns["dispatched_s"][order])]
    prompts = np.empty(len(order), np.int64), np.empty(len(order)), np.empty(len(order))
    line_up(table.columns, order, lane_of, fleet, load, NOW_S, 0.0, 1.0, True, *prompts)
    demands = list(zip(lane[:count].tolist(), slack[:count].tolist(), tpot[:count].tolist(), strict=True))
    return {name: load[name] for name in LOAD.names or ()}, demands


def decoder(**changes: object) -> Running:
    values: dict[str, object] = {"prefill_worker": "a", "decode_worker": "a", "seen_s": NOW_S}
    return make_running(**{**values, **changes})


def test_a_decoder_s_next_token_is_due_by_its_slo() -> None:
    objective = Objective(arrival_s=99.0, ttft_s=0.5, tpot_s=0.1)
    _, demands = loaded([decoder(objective=objective, first_token_s=99.4, generated_tokens=8)], [make_worker(id="a")])
    [(lane, slack_us, tpot_us)] = demands
    assert (lane, round(slack_us / 1e3), tpot_us) == (0, 300, 100_000)


def test_progress_between_reports_is_what_the_slo_asks_for_or_what_the_engine_s_pace_makes() -> None:
    objective = Objective(arrival_s=98.0, ttft_s=1.0, tpot_s=0.1)
    stale = decoder(objective=objective, first_token_s=99.0, generated_tokens=1, seen_s=99.0)
    in_time, _ = loaded([stale], [make_worker(id="a")])
    fast, ahead = loaded([stale], [make_worker(id="a", step_s=0.05)])
    assert (in_time["context"][0], fast["context"][0]) == (110, 120)
    assert round(ahead[0][1] / 1e3) == 1100


def test_a_re_dispatched_request_counts_its_deadlines_from_its_new_first_token() -> None:
    objective = Objective(arrival_s=90.0, ttft_s=1.0, tpot_s=0.1)
    again = decoder(objective=objective, first_token_s=99.95, generated_tokens=41, dispatched_tokens=40)
    _, demands = loaded([again], [make_worker(id="a")])
    assert round(demands[0][1] / 1e3) == 50


def test_best_effort_takes_sequences_and_kv_but_makes_no_demand() -> None:
    load, demands = loaded([decoder(objective=None)], [make_worker(id="a")])
    assert demands == []
    assert (load["seqs"][0], load["decoders"][0], load["kv"][0].max()) == (1, 0, 0.0)
    assert load["all_kv"][0].max() > 100


def test_a_waiting_prompt_is_backlog_where_it_is_prefilled_and_a_decoder_where_it_will_decode() -> None:
    waiting = decoder(decode_worker="b", todo_tokens=1000, context_tokens=1000, first_token_s=None, dispatched_s=NOW_S)
    load, demands = loaded([waiting], [make_worker(id="a"), make_worker(id="b")])
    assert load["backlog"].tolist() == [1000, 0]
    assert load["decoders"].tolist() == [0, 1]
    assert [lane for lane, _, _ in demands] == [1]
    assert abs(load["end_s"][0] - FAST.prefill_seconds(1000, 2048)) < 1e-3


def test_a_prompt_that_has_run_for_a_while_counts_what_is_left() -> None:
    half = decoder(todo_tokens=2000, context_tokens=2000, first_token_s=None, dispatched_s=NOW_S - 0.1)
    load, _ = loaded([half], [make_worker(id="a")])
    assert 700 < load["backlog"][0] < 1300


def test_work_on_workers_that_are_gone_is_left_out() -> None:
    load, demands = loaded([decoder(prefill_worker="x", decode_worker="y", todo_tokens=5)], [make_worker(id="a")])
    assert demands == []
    assert load["seqs"][0] == 0


def test_a_worker_with_tight_decoders_takes_longer_for_a_prompt() -> None:
    fleet, load = Fleets().of([make_worker()], NOW_S), empty_load(1)
    refresh(fleet, load, 0)
    alone_s = ends_after(fleet, load, 0, 1500.0)
    load["decoders"][0], load["tightest_s"][0] = 4, 0.02
    refresh(fleet, load, 0)
    assert ends_after(fleet, load, 0, 1500.0) > 1.2 * alone_s
    load["tightest_s"][0] = 0.005
    refresh(fleet, load, 0)
    assert math.isinf(ends_after(fleet, load, 0, 1500.0))


@pytest.mark.parametrize(
    ("stepped_s", "busy_until_s", "expected"),
    [
        (0.0, 0.0, (0.0, -1.0)),  # nothing is known
        (NOW_S - 0.04, 0.0, (0.0, 0.04)),
        (NOW_S - 0.04, NOW_S + 0.03, (0.03, -1.0)),  # told: nothing is to be guessed
        (NOW_S - 0.04, NOW_S - 0.005, (0.0, -1.0)),  # it ends any moment, and the news is on its way
        (NOW_S - 0.04, NOW_S - 0.02, (0.0, 0.02)),  # another iteration may have begun where that one ended
        (NOW_S - 0.03, NOW_S - 0.5, (0.0, 0.03)),
    ],
)
def test_the_present_iteration_s_end_is_what_was_told_last(
    stepped_s: float, busy_until_s: float, expected: tuple[float, float]
) -> None:
    fleet = Fleets().of([make_worker(stepped_s=stepped_s, busy_until_s=busy_until_s)], NOW_S)
    assert (fleet["ready_s"][0], fleet["since_s"][0]) == pytest.approx(expected)


def test_compiled_code_gives_what_its_source_says() -> None:
    out, twin = np.empty(len(HORIZONS)), np.empty(len(HORIZONS))
    table = np.linspace(1.0, 0.01, BINS)
    kv_of(table, 100.0, 50, 700, 16, out)
    plain(kv_of)(table, 100.0, 50, 700, 16, twin)
    assert out.tolist() == twin.tolist()
    fleet, load = Fleets().of([make_worker()], NOW_S), empty_load(1)
    refresh(fleet, load, 0)
    decoders = np.array([0]), np.array([1e4]), np.array([5e4]), 0.0, np.array([1e5, 1e6])
    records: list[Any] = [np.asarray(array).view(np.recarray) for array in (fleet, load)]
    by_source = plain(timeline)(records[0], records[1], *decoders)
    assert timeline(fleet, load, *decoders).budget.tolist() == by_source.budget.tolist()


def test_without_a_compiler_functions_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")

    def function(x: int) -> int:
        return x + 1

    assert compiled(function) is function
