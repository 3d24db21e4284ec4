"""The table of running requests: a sequence, and columns that always agree with it."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from admission.table import RunningTable, table_of
from tests.factories import make_running


@given(st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=300))
def test_columns_agree_with_the_requests_after_any_changes(changes: list[tuple[int, bool]]) -> None:
    table = RunningTable()
    kept = {}
    for step, (number, put) in enumerate(changes):
        running = make_running(id=f"r{number}", context_tokens=step, decode_worker=f"w{number % 3}")
        if put:
            table.put(running)
            kept[running.id] = running
        else:
            assert table.remove(running.id) == kept.pop(running.id, None)
    assert {running.id: running for running in table} == kept
    assert table.columns["context"].tolist() == [running.context_tokens for running in table]
    numbers = table.worker_names.index
    assert table.columns["decode"].tolist() == [numbers[running.decode_worker] for running in table]
    assert all(table.get(name) is running for name, running in kept.items())


def test_token_deadlines_count_from_the_ttft_or_a_later_first_token() -> None:
    early = make_running(first_token_s=99.5)
    late = replace(early, id="late", first_token_s=101.0)
    waiting = replace(early, id="waiting", first_token_s=None)
    best_effort = replace(early, id="best effort", objective=None)
    columns = RunningTable([early, late, waiting, best_effort]).columns
    assert columns["start_s"][:2].tolist() == [100.0, 101.0]
    assert math.isnan(columns["start_s"][2])
    assert np.isinf(columns["tpot_s"]).tolist() == [False, False, False, True]


def test_a_plain_sequence_becomes_a_table_and_a_table_stays_itself() -> None:
    running = [make_running(), make_running()]
    table = table_of(running)
    assert list(table) == running
    assert table_of(table) is table
    table.clear()
    assert len(table) == 0
