"""The list schedule: compiled and as plain Python, and never over a worker's limits."""

import math
import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.contest import contest
from admission.jit import plain
from admission.leftover import fill
from admission.options import PlannerOptions
from admission.placement import promise
from admission.plan import ClusterState
from admission.request_arrays import HOLD, SEND, WAIT, HeldRows, Rules, by_urgency, nothing_placed
from admission.settling import settle
from admission.situation import Situation, Surveyor
from common.messages import Overload
from common.slo import Objective
from tests.admission.test_promises import MODELS, fleet
from tests.factories import make_held, make_running, make_state

NOW_S = 100.0
RULES = Rules(
    soon_s=0.007,
    hop_s=0.002,
    decode_load=0.9,
    pack=True,
    elastic=True,
    loose_share=0.05,
    pack_s=0.25,
    hand_off=0.1,
    stray=0.25,
    head_start=1.0,
    spoil_s=0.2,
)


def drawn_state(seed: int) -> ClusterState:
    rng = random.Random(seed)
    workers = fleet(rng, MODELS[rng.choice(sorted(MODELS))])
    running = [
        make_running(
            prefill_worker=rng.choice(workers).id,
            decode_worker=rng.choice(workers).id,
            todo_tokens=rng.choice([0, 0, 800]),
            context_tokens=800,
            objective=None if rng.random() < 0.2 else Objective(99.0, 1.0, rng.choice([0.02, 0.1])),
        )
        for _ in range(rng.randint(0, 12))
    ]
    held = [
        make_held(
            need_tokens=rng.randint(10, 3000),
            arrival_s=99.9,
            objective=Objective(99.9, rng.uniform(0.1, 3.0), rng.choice([0.02, 0.05, 0.1])),
            overload=rng.choice(list(Overload)),
            deferred=rng.random() < 0.2,
            patience_s=rng.choice([0.2, 30.0]),
        )
        for _ in range(rng.randint(1, 20))
    ]
    return make_state(held, running, workers={worker.id: worker for worker in workers})


def drawn(seed: int) -> Situation:
    state = drawn_state(seed)
    return Surveyor(PlannerOptions()).situation(state, *by_urgency(state.held), NOW_S)


def drawn_rows(seed: int) -> HeldRows:
    return by_urgency(drawn_state(seed).held)[1]


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_the_compiled_schedule_is_that_of_its_source(seed: int) -> None:
    outcomes = []
    for as_source in (False, True):
        at = drawn(seed)
        count = len(at.queue["due_s"])
        placed, order = nothing_placed(count), np.arange(count)
        arrays: list[Any] = [at.queue, at.fleet, at.load, placed]
        if as_source:
            arrays = [np.asarray(array).view(np.recarray) for array in arrays]
        queue, lanes, load, where = arrays
        (plain(promise) if as_source else promise)(order, queue, lanes, load, at.tables, at.line, RULES, where)
        rest = np.flatnonzero(placed["action"] == WAIT)
        (plain(fill) if as_source else fill)(rest, queue, lanes, load, at.tables, RULES, len(rest), where)
        outcomes.append([placed[name].tolist() for name in ("action", "prefill", "decode", "finish_s")])
    assert outcomes[0] == outcomes[1]


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_what_becomes_of_requests_is_what_the_source_says(seed: int) -> None:
    outcomes = []
    for as_source in (False, True):
        at, asked = drawn(seed), drawn_rows(seed)
        placed = nothing_placed(len(at.queue["due_s"]))
        arrays: list[Any] = [asked, at.queue, at.fleet, at.load, placed]
        if as_source:
            arrays = [np.asarray(array).view(np.recarray) for array in arrays]
        rows, queue, lanes, load, where = arrays
        settled = (plain(settle) if as_source else settle)(
            rows, queue, at.zero_load_s, lanes, load, at.takers, at.tables, at.line, at.prompt_rate, math.inf,
            NOW_S, RULES, where,
        )  # fmt: skip
        numbers = [settled.promised, settled.loose, settled.denied, settled.impatient, settled.waits_s]
        outcomes.append([*[array.tolist() for array in numbers], settled.wake_s, placed["action"].tolist()])
    assert outcomes[0] == outcomes[1]
    promised, loose, denied, impatient, *_ = outcomes[0]
    waiting = set(range(len(outcomes[0][-1]))) - set(promised)
    assert set(loose) | set(denied) | set(impatient) <= waiting
    assert not set(loose) & set(impatient)


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_what_requests_compete_for_is_what_the_source_says(seed: int) -> None:
    at = drawn(seed)
    hopeful = np.flatnonzero(at.zero_load_s <= at.queue["due_s"])
    records: list[Any] = [np.asarray(array).view(np.recarray) for array in (at.queue, at.fleet, at.load)]
    queue, fleet, load = records
    compiled = contest(hopeful, at.queue, at.fleet, at.load, at.takers, at.line, at.tables, True)
    by_source = plain(contest)(hopeful, queue, fleet, load, at.takers, at.line, at.tables, True)
    for name in ("work", "kv", "budget"):
        assert getattr(compiled, name).tolist() == getattr(by_source, name).tolist()
    assert compiled.kv_limit == by_source.kv_limit
    assert (np.diff(compiled.budget) >= 0).all()


@given(st.integers(0, 10**6))
@settings(max_examples=100)
def test_promises_are_in_time_and_kv_and_sequences_fit(seed: int) -> None:
    at = drawn(seed)
    before = at.load["kv"].max(axis=1).copy()
    count = len(at.queue["due_s"])
    placed, order = nothing_placed(count), np.arange(count)
    promise(order, at.queue, at.fleet, at.load, at.tables, at.line, RULES, placed)
    for i in np.flatnonzero(placed["action"] != WAIT):
        assert placed["action"][i] in (HOLD, SEND)
        assert placed["finish_s"][i] <= at.queue["due_s"][i]
    assert (at.load["kv"].max(axis=1) <= np.maximum(at.fleet["kv"], before)).all()
    assert (at.load["decoders"] <= np.maximum(at.fleet["max_seqs"], 12)).all()


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_no_worker_idles_while_best_effort_that_fits_waits(seed: int) -> None:
    at = drawn(seed)
    count = len(at.queue["due_s"])
    placed = nothing_placed(count)
    fill(np.arange(count), at.queue, at.fleet, at.load, at.tables, RULES, count, placed)
    left = placed["action"] == WAIT
    for lane in range(len(at.lanes)):
        idle = at.load["backlog"][lane] <= 0 and at.load["loose_tokens"][lane] <= 0
        seats = at.load["seqs"][lane] + 1 <= 0.75 * at.fleet["max_seqs"][lane]
        need = at.queue["tokens"][left] + at.queue["left"][left] + 16
        assert not (idle and seats and (at.load["all_kv"][lane].max() + need <= at.fleet["kv"][lane]).any())
