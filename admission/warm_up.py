"""Plans that touch all compiled code, so that compiling happens when a service starts."""

from collections.abc import Callable
from dataclasses import replace

from admission.memory import SurvivalLearner
from admission.plan import ClusterState, Held, Plan, Running, Worker
from common.latency_model import LatencyModel, Piece
from common.messages import Overload, Stage
from common.slo import Objective


def warm_up(plan: Callable[[ClusterState, float], Plan]) -> None:
    """Call ``plan`` on made-up states: idle, overloaded, equal and unequal values, with and without KV to spare."""
    latency = LatencyModel((Piece(1e-4, 0.0, 0.005),), k_seq=1e-4)
    worker = Worker("w", Stage.PREFILL, frozenset(Stage), latency, 8, 512, 16, 256, 256, 0)
    held = [
        Held(f"h{i}", "t", 400, 64, 0.0, Objective(0.0, 0.2, 0.05), 1.0 + i % 2, Overload(v), 1e9)
        for i, v in enumerate(["defer", "reject"] * 4)
    ]
    held += [
        replace(held[0], id="b", objective=None),
        replace(held[0], id="tight", objective=Objective(0.0, 9.0, 1e-6)),
    ]
    first = Running("r", "t", Objective(0.0, 1.0, 0.05), "w", "w", 100, 100, 0, 64, None)
    running = [first, replace(first, id="d", todo_tokens=0, first_token_s=0.0)]
    learner = SurvivalLearner(refresh=1)
    learner.observe("t", 20)
    state = ClusterState(0, held, running, {"w": worker}, 0.001, learner.snapshot())
    for wanted in (
        state,
        replace(state, held=[replace(one, value=1.0) for one in held], running=[]),
        replace(state, workers={"w": replace(worker, total_blocks=40)}),
    ):
        plan(wanted, 0.0)
