"""The paper's policy: replicas, routing, and best effort for whom all decline."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from admission.plan import Plan
from admission.policies.slos_serve import SlosServe
from common.messages import Overload, Stage, Verdict
from common.slo import Objective
from tests.admission.follower import Follower
from tests.admission.test_promises import MODELS, fleet, workload
from tests.factories import make_held, make_running, make_state, make_worker

NOW_S = 100.0
plan = SlosServe().plan


def due_in(seconds: float) -> Objective:
    return Objective(NOW_S, seconds, 0.1)


def test_a_feasible_request_is_bound_at_arrival() -> None:
    held = [make_held(need_tokens=2000, objective=due_in(5.0)) for _ in range(3)]
    outcome = plan(make_state(held), NOW_S)
    assert {decision.verdict for decision in outcome.dispatch.values()} == {Verdict.ADMITTED}
    assert len(outcome.dispatch) == 3


def test_who_is_declined_by_one_replica_is_taken_by_the_next() -> None:
    held = [make_held(need_tokens=3000, objective=due_in(0.45)) for _ in range(2)]
    outcome = plan(make_state(held), NOW_S)
    assert {decision.prefill_worker for decision in outcome.dispatch.values()} == {"p", "d"}


def test_whom_all_decline_is_deferred_once_and_then_best_effort() -> None:
    busy = [make_running(todo_tokens=20_000, prefill_worker=name, decode_worker=name) for name in "pd"]
    held, rejecting = make_held(objective=due_in(0.5)), make_held(objective=due_in(0.5), overload=Overload.REJECT)
    outcome = plan(make_state([held, rejecting], busy), NOW_S)
    assert (list(outcome.defer), list(outcome.reject), list(outcome.dispatch)) == ([held.id], [rejecting.id], [])
    assert outcome.reject[rejecting.id].retry_after_s is not None
    idle = plan(make_state([make_held(objective=due_in(5.0), deferred=True)]), NOW_S)
    assert [decision.verdict for decision in idle.dispatch.values()] == [Verdict.DEFERRED]


def test_dedicated_workers_are_paired() -> None:
    fleet = {
        "p": make_worker(id="p", may=frozenset({Stage.PREFILL})),
        "d": make_worker(id="d", prefers=Stage.DECODE, may=frozenset({Stage.DECODE})),
    }
    held = make_held()
    decision = plan(make_state([held], workers=fleet), NOW_S).dispatch[held.id]
    assert (decision.prefill_worker, decision.decode_worker) == ("p", "d")


def test_without_workers_nothing_is_decided() -> None:
    assert plan(make_state([make_held()], workers={}), NOW_S) == Plan({}, {}, {})


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_everything_ends(seed: int) -> None:
    rng = random.Random(seed)
    workers, jobs = fleet(rng, MODELS["small"]), workload(rng, 20, MODELS["small"], 20.0)
    Follower(SlosServe(), workers).run(jobs)
    assert all(job.rejected or len(job.times_s) == job.output for job in jobs)
