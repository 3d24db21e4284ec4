"""What a plan calculates with is what requests and workers say."""

import math
from dataclasses import replace

import pytest

from admission.fleets import Fleets
from admission.plan import Held
from admission.request_arrays import HELD, by_urgency
from common.messages import Overload, Stage
from common.slo import Objective
from tests.factories import FAST, make_held, make_worker


def row_of(held: Held) -> dict[str, float]:
    _, rows = by_urgency([held])
    return {name: rows[name][0] for name in HELD.names or ()}


def test_a_request_s_row_is_what_its_fields_say() -> None:
    objective = Objective(90.0, 2.0, 0.1, thinking_tpot_s=0.05)
    held = make_held(
        arrival_s=90.0, objective=objective, need_tokens=70, max_tokens=9, generated_tokens=3, value=2.5, round=4,
        patience_s=7.0, prefix_worker="w", prefix_tokens=500, first_token_s=93.0, overload=Overload.REJECT,
    )  # fmt: skip
    assert row_of(held) == pytest.approx(
        {
            "due_s": 93.15, "tpot_s": 0.05, "ttft_s": 2.0, "arrival_s": 90.0, "patience_s": 7.0, "tokens": 70,
            "generated": 3, "left": 9, "cached": 69, "value": 2.5, "round": 4, "offline": 0, "deferred": 0,
            "missed_round": 0, "reject": 1,
        }
    )  # fmt: skip


def test_a_changed_request_has_another_row() -> None:
    held = make_held()
    late = replace(held, objective=None, deferred=True, missed_round=True)
    assert [row_of(held)[name] for name in ("offline", "deferred", "missed_round")] == [0, 0, 0]
    row = row_of(late)
    assert [row[name] for name in ("offline", "deferred", "missed_round")] == [1, 1, 1]
    assert math.isinf(row["due_s"])
    assert row["cached"] == 0


def test_the_most_urgent_come_first_and_of_those_the_oldest() -> None:
    later = make_held(objective=Objective(100.0, 3.0, 0.1))
    newer = make_held(arrival_s=100.5, objective=Objective(100.5, 0.5, 0.1))
    older = make_held(arrival_s=100.0, objective=Objective(100.0, 1.0, 0.1))
    never = make_held(objective=None)
    held, rows = by_urgency([never, later, newer, older])
    assert held == [older, newer, later, never]
    assert rows["due_s"].tolist() == [101.0, 101.0, 103.0, math.inf]


def test_a_worker_s_row_follows_its_heartbeat() -> None:
    fleets, worker = Fleets(longest_steps=4.0, draft_trust=0.5), make_worker(id="w")
    assert fleets.of([worker], 0.0)["k_seq"][0] == FAST.k_seq
    changes = (
        ("k_seq", replace(worker, latency=replace(FAST, k_seq=2e-4)), 2e-4),
        ("k_seq", replace(worker, slowdown=1.5), 1.5 * FAST.k_seq),
        ("max_seqs", replace(worker, max_seqs=3), 3),
        ("block", replace(worker, block_size=32), 32),
        ("step_s", replace(worker, step_s=0.25), 0.25),
        ("pull_s", replace(worker, pull_s=0.5), 0.5),
        ("made", replace(worker, draft_tokens=3.0), 2.0),
        ("likes_decode", replace(worker, prefers=Stage.DECODE), True),
        ("prefills", replace(worker, may=frozenset({Stage.DECODE})), False),
        ("ready_s", replace(worker, busy_until_s=1.5), 1.5),
    )
    for name, changed, expected in changes:
        assert fleets.of([changed], 0.0)[name][0] == pytest.approx(expected), name
    assert fleets.of([worker], 0.0, 1.5)["k_seq"][0] == pytest.approx(1.5 * FAST.k_seq)
    assert fleets.of([worker], 0.0)["k_seq"][0] == FAST.k_seq


def test_kinds_are_by_fingerprint_and_workers_that_are_gone_are_forgotten() -> None:
    fleets = Fleets()
    workers = [make_worker(fingerprint=name) for name in ("a", "b", "a")]
    assert fleets.of(workers, 0.0)["kind"].tolist() == [0, 1, 0]
    assert fleets.of(workers[1:], 0.0)["kind"].tolist() == [0, 1]
    for _ in range(300):
        fleets.of([make_worker()], 0.0)
    assert len(fleets._kept) < 100
