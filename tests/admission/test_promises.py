"""When engines follow their latency model, every promise is kept, KV fits and nothing is left lying."""

import random
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from admission.options import PlannerOptions
from admission.plan import Worker
from admission.policies.ours import Ours
from common.latency_model import LatencyModel, Piece
from common.messages import Overload, Stage
from common.slo import Objective
from tests.admission.follower import Follower, Job
from tests.factories import make_held, make_worker

MODELS = {
    "small": LatencyModel((Piece(1e-4, 0.0, 0.005),), k_seq=1e-4),
    "heavy": LatencyModel((Piece(7e-5, 0.0, 0.03),), k_seq=1e-5, k_kv=2e-8),
    "roofline": LatencyModel((Piece(7e-5, 0.0, 0.003), Piece(2e-5, 0.0, 0.02)), k_seq=2e-5, k_kv=5e-8, k_attn=1e-9),
}


STRICT = PlannerOptions(head_start=1.0)
"""Every wait for a batch of the worker that decodes is planned for."""

JOINING_S = 5e-4
"""A second token after a hand-off may be as late as decodes that join meanwhile make an iteration longer."""


def fleet(rng: random.Random, model: LatencyModel) -> list[Worker]:
    stages = [Stage.PREFILL, Stage.DECODE, rng.choice(list(Stage)), rng.choice(list(Stage))]
    blocks = rng.choice([300, 1500, 4000])
    return [
        make_worker(id=f"w{i}", prefers=stage, latency=model, total_blocks=blocks, max_seqs=rng.choice([4, 64]))
        for i, stage in enumerate(stages[: rng.randint(1, 4)])
    ]


def workload(rng: random.Random, count: int, model: LatencyModel, rate: float) -> list[Job]:
    jobs, now_s = [], 100.0
    step_s = model.decode_seconds(16, 16_000)
    for _ in range(count):
        now_s += rng.choice([0.0, rng.expovariate(rate)])
        prompt, most = rng.choice([50, 400, 1500, 3000]), rng.choice([5, 50, 400])
        ttft_s = rng.choice([2.0, 5.0, 20.0]) * (model.prefill_seconds(prompt, 2048) + 0.002)
        objective = Objective(now_s, ttft_s, rng.choice([1.3, 2.0, 4.0]) * step_s)
        held = make_held(
            need_tokens=prompt,
            max_tokens=most,
            arrival_s=now_s,
            objective=None if rng.random() < 0.15 else objective,
            value=rng.choice([1.0, 1.0, 2.0]),
            overload=rng.choice(list(Overload)),
            patience_s=1e5,
        )
        jobs.append(Job(held, rng.randint(1, most)))
    return jobs


@given(st.integers(0, 10**6), st.sampled_from(sorted(MODELS)), st.sampled_from([1.0, 5.0, 20.0]))
@example(691420, "small", 20.0)  # broken if a hand-off waits for no longer a batch than is counted on
@settings(max_examples=40)
def test_no_promise_is_broken_and_everything_ends(seed: int, name: str, rate: float) -> None:
    rng = random.Random(seed)
    workers, jobs = fleet(rng, MODELS[name]), workload(rng, 40, MODELS[name], rate)
    follower = Follower(Ours(STRICT), workers)
    follower.run(jobs)
    promised = [job for job in jobs if job.promised]
    assert max((job.late_by_s() for job in promised), default=0.0) <= 1e-9
    assert all(job.rejected or len(job.times_s) == job.output for job in jobs)
    assert all(used <= w.total_blocks * w.block_size for w in workers for used in [follower.most_kv[w.id]])


@given(st.integers(0, 10**6), st.sampled_from(sorted(MODELS)))
@settings(max_examples=20)
def test_no_promise_is_broken_where_roles_are_kept(seed: int, name: str) -> None:
    rng = random.Random(seed)
    workers, jobs = fleet(rng, MODELS[name]), workload(rng, 40, MODELS[name], 10.0)
    Follower(Ours(replace(STRICT, elastic=False)), workers, elastic=False).run(jobs)
    assert max((job.late_by_s() for job in jobs if job.promised), default=0.0) <= JOINING_S
    assert all(job.rejected or len(job.times_s) == job.output for job in jobs)


def test_by_default_hardly_a_promise_is_broken_and_only_after_a_hand_off() -> None:
    """The default plans a hand-off with a fifth of the longest wait: it promises more, and is seldom wrong."""
    promised = late = 0
    for name in MODELS:
        for seed in range(10):
            rng = random.Random(seed)
            workers, jobs = fleet(rng, MODELS[name]), workload(rng, 40, MODELS[name], 5.0)
            Follower(Ours(), workers).run(jobs)
            for job in jobs:
                promised += job.promised
                if job.promised and job.late_by_s() > 1e-9:
                    late += 1
                    assert job.held.objective is not None
                    assert job.decision is not None
                    assert job.decision.prefill_worker != job.decision.decode_worker
                    assert job.times_s[0] <= job.held.objective.prefill_due_s + 1e-9
    assert promised > 500
    assert late <= 0.01 * promised


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_best_effort_is_served_while_promises_keep_all_workers_busy(seed: int) -> None:
    rng = random.Random(seed)
    jobs = workload(rng, 60, MODELS["small"], 30.0)
    loose = Job(make_held(objective=None, need_tokens=400, max_tokens=5, arrival_s=100.0, patience_s=1e5), 5)
    Follower(Ours(), [make_worker(id="a", latency=MODELS["small"])]).run([loose, *jobs])
    assert loose.times_s[0] < max(job.held.arrival_s for job in jobs) + 5.0
