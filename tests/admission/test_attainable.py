"""An SLO that is below what an idle engine needs is told so, with what is possible."""

from dataclasses import replace

import pytest

from admission.attainable import LONGEST_DRAIN_S, drain_s, unattainable
from common.latency_model import Batch
from common.messages import Stage
from common.slo import Objective
from tests.factories import FAST, make_held, make_worker

FLEET = [make_worker(), make_worker(may=frozenset([Stage.DECODE]))]


def due_in(ttft_s: float) -> Objective:
    return Objective(100.0, ttft_s, 0.1)


def test_a_ttft_below_the_zero_load_time_is_impossible() -> None:
    reason = unattainable(make_held(objective=due_in(0.015)), FLEET)
    assert reason == "slo_unattainable: TTFT is at least 15.1 ms for this prompt"


def test_a_ttft_of_the_zero_load_time_is_possible_however_late_it_is() -> None:
    assert unattainable(make_held(objective=due_in(0.0152), arrival_s=0.0), FLEET) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_one_engine_that_is_fast_enough_makes_it_possible(reverse: bool) -> None:
    fleet = [make_worker(id="slow", latency=FAST.scaled(2)), make_worker(id="fast")]
    found = [unattainable(make_held(objective=due_in(s)), fleet[::-1] if reverse else fleet) for s in (0.0152, 0.015)]
    assert found == [None, "slo_unattainable: TTFT is at least 15.1 ms for this prompt"]


def test_what_has_no_slo_or_has_begun_or_finds_no_engine_is_left_alone() -> None:
    assert unattainable(make_held(objective=None), FLEET) is None
    assert unattainable(make_held(objective=due_in(0.001), generated_tokens=3), FLEET) is None
    assert unattainable(make_held(objective=due_in(0.001)), FLEET[1:]) is None


def test_what_waits_drains_as_fast_as_those_who_prefill_compute() -> None:
    worker = make_worker()
    batch_s = FAST.seconds(Batch(worker.max_batch_tokens, 1))
    batches = 100 * worker.max_batch_tokens
    alone_s = drain_s(batches, [worker])
    assert alone_s == pytest.approx(100 * batch_s)
    assert drain_s(batches, [worker, worker]) == pytest.approx(alone_s / 2)
    assert drain_s(batches, [replace(worker, slowdown=2.0)]) == pytest.approx(2 * alone_s)
    assert drain_s(batches, [worker, replace(worker, may=frozenset({Stage.DECODE}))]) == pytest.approx(alone_s)
    assert drain_s(0, [worker]) == 1.0
    assert drain_s(10**12, [worker]) == drain_s(1, []) == LONGEST_DRAIN_S
