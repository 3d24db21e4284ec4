"""``python -m bench.planner``: what a plan costs, and how good the selection is.

A plan's time is that of a whole ``plan(state, now)`` call of the product's policy, its conversion of the state and
its decisions included; what runs is in a :class:`admission.table.RunningTable`, as in the service, whose upkeep is
timed beside it (``table_update_us``). Each figure is over states that differ: other requests arrive, others run.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from admission.late_jobs import greedy, select
from admission.memory import SurvivalLearner
from admission.plan import ClusterState, Held, Running, Worker
from admission.planner import Candidate, brute_force
from admission.policies.ours import Ours
from admission.table import RunningTable
from bench.results import raw
from common.latency_model import LatencyModel, Piece
from common.messages import Overload, Stage
from common.slo import Objective

H100 = LatencyModel((Piece(5.1e-5, 0.0, 0.014),), k_seq=1.69e-5, k_kv=8e-8)
"""Qwen2.5-7B on an H100, of the paper's measurements."""

HOLDS = (1, 4, 16, 64, 256, 1024)
FLEETS = ((1, 64), (8, 64), (8, 256), (64, 64), (64, 256))
NOW_S = 1000.0
TIERS = (("chat", 5.0, 0.1), ("code", 5.0, 0.05), ("summarize", 3.0, 0.1), ("tool", 3.0, 0.05))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.planner", description=__doc__)
    parser.add_argument("--plans", type=int, default=300, help="plans for each figure (default 300)")
    parser.add_argument("--cases", type=int, default=2000, help="random cases against brute force (default 2000)")
    parser.add_argument("--seed", type=int, default=1)
    raw.add_out(parser)
    args = parser.parse_args(argv)
    policy = Ours()
    note("compiling")
    started_s = time.perf_counter()
    policy.warm_up()
    result: dict[str, float] = {"warm_up_s": round(time.perf_counter() - started_s, 3)}
    result |= quality(args.cases, args.seed)
    for workers, decoders in FLEETS:
        fleet = Fleet(workers, decoders, args.seed)
        for hold in HOLDS:
            name = f"hold{hold}_w{workers}_d{decoders}"
            times_ms, cores_ms = fleet.time(policy, hold, args.plans)
            result[f"{name}_p50_ms"] = round(statistics.median(times_ms), 4)
            result[f"{name}_p99_ms"] = round(percentile(times_ms, 0.99), 4)
            result[f"{name}_cpu_p99_ms"] = round(percentile(cores_ms, 0.99), 4)
            note(f"{name}: p50 {result[name + '_p50_ms']} ms, p99 {result[name + '_p99_ms']} ms")
    result["table_update_us"] = round(table_update_us(), 3)
    raw.keep(args.out, "bench.planner", argv, result)
    print(json.dumps(result))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def quality(cases: int, seed: int) -> dict[str, float]:
    """Least ratio to the exact optimum over small cases, and mean ratio to greedy over large ones."""
    rng = random.Random(seed)
    worst = 1.0
    for _ in range(cases):
        count = rng.randint(1, 10)
        values = (1.0,) if rng.random() < 0.3 else (0.5, 1.0, 1.5, 2.0, 5.0)
        some = [Candidate(rng.randint(1, 99), rng.randint(0, 50), rng.choice(values)) for _ in range(count)]
        budget = sorted(float(rng.randint(0, 60 * count)) for _ in range(count))
        kv = float(rng.choice([10**6, 25 * count]))
        best = brute_force(some, budget, kv)
        got = float(np.array([one.value for one in some])[_select(some, budget, kv)].sum())
        worst = min(worst, got / best if best else 1.0)
    note(f"against brute force: {worst} at worst over {cases} cases")
    ratios = []
    for _ in range(100):
        some = [Candidate(rng.randint(50, 3000), 0, rng.choice((1.0, 1.5, 2.0))) for _ in range(64)]
        budget = sorted(rng.uniform(0, 0.6 * sum(one.work for one in some)) for _ in some)
        work, need, value = _columns(some)
        easy = float(value[greedy(work, need, np.array(budget), math.inf)].sum())
        ratios.append(float(value[_select(some, budget, math.inf)].sum()) / easy)
    return {"dp_vs_brute_force": worst, "dp_vs_greedy": round(statistics.mean(ratios), 4), "brute_force_cases": cases}


def _columns(some: Sequence[Candidate]) -> tuple[np.ndarray, ...]:
    return tuple(np.array([getattr(one, name) for one in some], dtype=np.float64) for name in ("work", "kv", "value"))


def _select(some: Sequence[Candidate], budget: Sequence[float], kv: float) -> np.ndarray:
    work, need, value = _columns(some)
    return select(work, need, value, np.array(budget, dtype=np.float64), kv)


class Fleet:
    """Workers full of decoders that they can just keep up with, and more requests than there is room for."""

    def __init__(self, workers: int, decoders: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._count = 0
        self._workers = {
            f"w{i}": Worker(
                f"w{i}", Stage.PREFILL if i % 2 else Stage.DECODE, frozenset(Stage), H100, 512, 8192, 16, 60_000, 0, 0
            )
            for i in range(workers)
        }
        self._table = RunningTable(self._running(f"w{i}") for i in range(workers) for _ in range(decoders))
        learner = SurvivalLearner()
        for _ in range(500):
            for name, _, _ in TIERS:
                learner.observe(name, int(self._rng.expovariate(1 / 200)))
        self._survival = learner.snapshot()

    def time(self, policy: Ours, hold: int, plans: int) -> tuple[list[float], list[float]]:
        """Wall and CPU time of each plan, in ms."""
        held = [self._held() for _ in range(hold)]
        walls, cores = [], []
        for cycle in range(plans):
            for _ in range(4):
                held[self._rng.randrange(hold)] = self._held()
            for _ in range(4):
                done = self._table[self._rng.randrange(len(self._table))]
                self._table.remove(done.id)
                self._table.put(self._running(done.decode_worker))
            state = ClusterState(cycle, list(held), self._table, self._workers, 0.002, self._survival)
            wall, core = time.perf_counter(), time.thread_time()
            plan = policy.plan(state, NOW_S)
            walls.append((time.perf_counter() - wall) * 1e3)
            cores.append((time.thread_time() - core) * 1e3)
            for i, one in enumerate(held):
                if one.id in plan.dispatch or one.id in plan.reject:
                    held[i] = self._held()
                elif one.id in plan.defer:
                    held[i] = replace(one, deferred=True)
        return walls, cores

    def _name(self) -> str:
        self._count += 1
        return f"r{self._count}"

    def _held(self) -> Held:
        rng = self._rng
        tier, slowdown, tpot_s = rng.choice(TIERS)
        prompt = min(4000, max(16, int(rng.lognormvariate(6.4, 0.7))))
        arrival_s = NOW_S - rng.uniform(0, 0.1)
        objective = Objective(arrival_s, slowdown * H100.prefill_seconds(prompt, 8192), tpot_s)
        rounds = rng.choice((0, 1, 2)) if tier == "tool" else 0
        return Held(self._name(), tier, prompt, 1024, arrival_s, objective, 1.0, Overload.DEFER, 60.0, round=rounds)

    def _running(self, worker: str) -> Running:
        rng = self._rng
        tier, _, tpot_s = rng.choice(TIERS)
        generated, prompt = rng.randint(1, 200), rng.randint(16, 400)
        first_s = NOW_S - generated * tpot_s * rng.uniform(0.8, 1.0)
        objective = Objective(first_s - 0.2, rng.uniform(0.2, 1.0), tpot_s)
        return Running(
            self._name(),
            tier,
            objective,
            worker,
            worker,
            0,
            prompt + generated,
            generated,
            1024,
            first_s,
            first_s,
            NOW_S,
        )


def table_update_us() -> float:
    """Time to take one request out of a table of 16,384 and put another in."""
    fleet = Fleet(64, 256, 2)
    rows = [fleet._running("w1") for _ in range(2000)]
    table = fleet._table
    started_s = time.perf_counter()
    for running in rows:
        table.put(running)
    for running in rows:
        table.remove(running.id)
    return (time.perf_counter() - started_s) / len(rows) * 1e6


if __name__ == "__main__":
    main()
