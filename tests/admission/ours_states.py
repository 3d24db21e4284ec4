"""States that the product's policy is asked to plan, for its tests."""

from typing import Any

from admission.options import PlannerOptions
from admission.plan import ClusterState, Held, Plan, Worker
from admission.policies.ours import Ours
from common.latency_model import LatencyModel, Piece
from common.messages import Decision
from common.slo import Objective
from tests.factories import make_running, make_state, make_worker

NOW_S = 100.0
SLOW_BASE = LatencyModel((Piece(k_token=1e-4, k_draft=0.0, base=0.03),))
BOTH = [make_worker(id="a"), make_worker(id="b")]


def plan(state: ClusterState, now_s: float = NOW_S, **options: Any) -> Plan:
    return Ours(PlannerOptions(**options)).plan(state, now_s)


def due_in(seconds: float, tpot_s: float = 0.1) -> Objective:
    return Objective(arrival_s=NOW_S, ttft_s=seconds, tpot_s=tpot_s)


def state_of(held: list[Held], workers: list[Worker], running: Any = None, **changes: Any) -> ClusterState:
    return make_state(held, running, workers={worker.id: worker for worker in workers}, **changes)


def lanes(decision: Decision) -> tuple[str | None, str | None]:
    return decision.prefill_worker, decision.decode_worker


def busy(worker: str, prompts: int = 5, tokens: int = 2000) -> list[Any]:
    return [
        make_running(
            prefill_worker=worker,
            decode_worker=worker,
            todo_tokens=tokens,
            context_tokens=tokens,
            first_token_s=None,
            generated_tokens=0,
            objective=Objective(NOW_S, 0.4, 0.1),
        )
        for _ in range(prompts)
    ]
