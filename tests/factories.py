"""Subjects of tests, each with defaults for all that a test does not care about."""

import itertools
import time
from dataclasses import replace
from typing import Any

from admission.plan import ClusterState, Held, Running, Worker
from common.latency_model import LatencyModel, Piece
from common.messages import Overload, Request, Sampling, Slo, Stage
from common.slo import Objective

FAST = LatencyModel((Piece(k_token=1e-4, k_draft=0.0, base=0.005),), k_seq=1e-4)
"""One token costs 0.1 ms, a batch 5 ms."""

_ids = itertools.count(1)


def make_request(**changes: Any) -> Request:
    request = Request(
        id=f"r{next(_ids)}",
        tier="chat",
        tenant="default",
        arrival_s=100.0,
        prompt=tuple(range(3, 103)),
        sampling=Sampling(max_tokens=8, temperature=0.0),
        slo=Slo(ttft_ms=1000.0, ttft_slowdown=None, tpot_ms=100.0),
        overload=Overload.DEFER,
        value=1.0,
        patience_ms=30_000.0,
        reply_to="api",
    )
    return replace(request, **changes)


def arriving(**changes: Any) -> Request:
    """A request that arrives now."""
    return make_request(arrival_s=time.time(), **changes)


def make_held(**changes: Any) -> Held:
    held = Held(
        id=f"h{next(_ids)}",
        tier="chat",
        need_tokens=100,
        max_tokens=50,
        arrival_s=100.0,
        objective=Objective(arrival_s=100.0, ttft_s=1.0, tpot_s=0.1),
        value=1.0,
        overload=Overload.DEFER,
        patience_s=30.0,
    )
    return replace(held, **changes)


def make_worker(**changes: Any) -> Worker:
    worker = Worker(
        id=f"w{next(_ids)}",
        prefers=Stage.PREFILL,
        may=frozenset(Stage),
        latency=FAST,
        max_seqs=64,
        max_batch_tokens=2048,
        block_size=16,
        total_blocks=4096,
        free_blocks=4096,
        running=0,
    )
    return replace(worker, **changes)


def make_running(**changes: Any) -> Running:
    running = Running(
        id=f"d{next(_ids)}",
        tier="chat",
        objective=Objective(arrival_s=99.0, ttft_s=1.0, tpot_s=0.1),
        prefill_worker="p",
        decode_worker="d",
        todo_tokens=0,
        context_tokens=100,
        generated_tokens=1,
        max_tokens=50,
        first_token_s=99.5,
        dispatched_s=100.0,
    )
    return replace(running, **changes)


def make_state(held: list[Held], running: list[Running] | None = None, **changes: Any) -> ClusterState:
    """One prefill worker ``p`` and one decode worker ``d`` unless ``workers`` says otherwise."""
    fleet = [make_worker(id="p"), make_worker(id="d", prefers=Stage.DECODE)]
    state = ClusterState(
        cycle=1, held=held, running=running or [], workers={worker.id: worker for worker in fleet}, hop_s=0.002
    )
    return replace(state, **changes)
