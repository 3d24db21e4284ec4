"""What a whole plan promises: never worth much less for an SLO that is looser, an engine that is faster, or the DP.

What the dynamic program chooses never loses (test_planner.py). Then prompts are placed one by one where they end first,
with their decoders, and any such schedule can do worse when a job becomes easier (Graham's anomalies): by one request
at most.
"""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admission.options import PlannerOptions
from admission.plan import ClusterState
from admission.policies.ours import Ours
from common.latency_model import LatencyModel, Piece
from common.messages import Overload, Verdict
from common.slo import Objective
from tests.admission.test_promises import MODELS
from tests.factories import make_held, make_worker

NOW_S = 100.0
OURS = Ours()

Change = Callable[[ClusterState, int, float], ClusterState]


def cluster(seed: int, workers: int) -> ClusterState:
    """Prompts that compete for engines; decodes and KV are no bottleneck."""
    rng = random.Random(seed)
    model = MODELS[rng.choice(sorted(MODELS))]
    fleet = [make_worker(id=f"w{i}", latency=model, total_blocks=100_000, free_blocks=100_000) for i in range(workers)]
    tpot_s = 20 * model.decode_seconds(16, 16_000)
    held = []
    for i in range(rng.randint(2, 12)):
        prompt = rng.choice([50, 400, 1500, 3000])
        ttft_s = rng.choice([1.5, 3.0, 8.0]) * (model.prefill_seconds(prompt, 2048) + 0.002)
        objective = Objective(NOW_S, ttft_s, tpot_s)
        value, overload = rng.choice([1.0, 1.0, 2.0]), rng.choice(list(Overload))
        held.append(
            make_held(
                id=f"h{i}", need_tokens=prompt, objective=objective, value=value, overload=overload, patience_s=1e5
            )
        )
    return ClusterState(1, held, [], {worker.id: worker for worker in fleet}, 0.002)


def promised_value(state: ClusterState, policy: Ours = OURS) -> float:
    """Of what one plan promises, sent now or held until its worker needs it."""
    plan = policy.plan(state, NOW_S)
    loose = {name for name, decision in plan.dispatch.items() if decision.verdict is not Verdict.ADMITTED}
    without = loose | set(plan.defer) | set(plan.reject)
    return sum(one.value for one in state.held if one.id not in without)


def later_first_token(state: ClusterState, which: int, by: float) -> ClusterState:
    return with_objective(state, which, lambda slo: replace(slo, ttft_s=slo.ttft_s * by))


def slower_tokens(state: ClusterState, which: int, by: float) -> ClusterState:
    return with_objective(state, which, lambda slo: replace(slo, tpot_s=slo.tpot_s * by))


def with_objective(state: ClusterState, which: int, change: Callable[[Objective], Objective]) -> ClusterState:
    held = list(state.held)
    one = held[which % len(held)]
    assert one.objective is not None
    held[which % len(held)] = replace(one, objective=change(one.objective))
    return replace(state, held=held)


def faster_engines(state: ClusterState, _which: int, by: float) -> ClusterState:
    workers = {name: replace(one, latency=faster(one.latency, by)) for name, one in state.workers.items()}
    return replace(state, workers=workers)


def faster(model: LatencyModel, by: float) -> LatencyModel:
    pieces = tuple(Piece(piece.k_token / by, piece.k_draft / by, piece.base / by) for piece in model.pieces)
    return LatencyModel(pieces, model.k_seq / by, model.k_kv / by, model.k_attn / by)


CHANGES = [later_first_token, slower_tokens, faster_engines]
seeds, picks, factors = st.integers(0, 10**6), st.integers(0, 11), st.sampled_from([1.1, 2.0, 5.0])


@pytest.mark.parametrize("change", CHANGES)
@given(seed=seeds, workers=st.integers(1, 4), which=picks, by=factors)
@settings(max_examples=60)
def test_an_easier_task_costs_a_whole_plan_one_request_at_most(
    change: Change, seed: int, workers: int, which: int, by: float
) -> None:
    state = cluster(seed, workers)
    most = max(one.value for one in state.held)
    assert promised_value(change(state, which, by)) >= promised_value(state) - most


@given(seed=seeds)
@settings(max_examples=60)
def test_on_one_worker_the_program_promises_no_less_than_greed(seed: int) -> None:
    state = cluster(seed, 1)
    assert promised_value(state) >= promised_value(state, Ours(PlannerOptions(select="greedy")))
