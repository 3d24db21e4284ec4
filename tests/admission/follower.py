"""Engines that follow their latency model to the letter, and a planner over them: promises can be held to account."""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from admission.memory import Survival
from admission.plan import ClusterState, Held, Plan, Policy, Running, Worker
from admission.table import RunningTable
from common.batching import Former
from common.batching_table import WHOLE
from common.latency_model import Batch
from common.messages import Decision, Stage, Verdict

HOP_S = 0.002
SHARE = 0.05


@dataclass
class Job:
    """One request in the simulation; ``output`` is known to the engines only."""

    held: Held
    output: int
    decision: Decision | None = None
    todo: int = 0
    computed: int = 0
    at: str = ""
    dispatched_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    ready_s: float = 0.0
    rejected: bool = False
    makes_token: bool = False

    @property
    def promised(self) -> bool:
        return self.decision is not None and self.decision.verdict is Verdict.ADMITTED

    @property
    def context(self) -> int:
        return self.held.need_tokens + len(self.times_s)

    def due_s(self) -> float:
        """When the next token is due; never for best effort."""
        objective = self.held.objective
        if not self.promised or objective is None:
            return math.inf
        first_s = self.times_s[0] if self.times_s else 0.0
        return objective.token_due_s(len(self.times_s) + 1, first_s)

    def late_by_s(self) -> float:
        objective = self.held.objective
        assert objective is not None
        first_s = self.times_s[0]
        return max(t - objective.token_due_s(n + 1, first_s) for n, t in enumerate(self.times_s))


@dataclass
class Engine:
    """Batches end before the next token deadline; prompts in deadline order fill them; best effort comes last."""

    worker: Worker
    head_start_s: Callable[[Job], float]
    jobs: list[Job] = field(default_factory=list)
    busy_until_s: float = 0.0
    running: bool = False

    @property
    def longest_s(self) -> float:
        """No batch lasts longer in the product, whose own former cuts most of them shorter."""
        return Former().within(self.worker.latency, WHOLE)

    def kv_tokens(self) -> int:
        block = self.worker.block_size
        return sum(math.ceil(job.computed / block) * block for job in self.jobs)

    def batch(self, now_s: float) -> tuple[list[tuple[Job, int]], float]:
        """Tokens by job, and how long they take."""
        latency, limit = self.worker.latency, self.worker.max_batch_tokens
        here = [job for job in self.jobs if job.ready_s <= now_s + 1e-12]
        decodes = [job for job in here if not job.todo and job.promised]
        prompts = sorted((job for job in here if job.todo and job.promised), key=self.urgency_s)
        loose = [job for job in here if not job.promised]
        taken = [(job, 1) for job in decodes]
        seconds = self._seconds(taken)
        slack_s = min((job.due_s() - HOP_S - now_s for job in decodes), default=math.inf)
        room_s = max(seconds, min(slack_s, self.longest_s))
        left = limit - len(taken)
        kept = int(SHARE * left) if prompts and any(job.todo for job in loose) else 0
        for job in [*prompts, *(job for job in loose if not job.todo), *(job for job in loose if job.todo)]:
            most = left - kept if job.promised else left
            n = min(job.todo or 1, most)
            while n > 0 and self._seconds([*taken, (job, n)]) > room_s + 1e-9:
                over_s = self._seconds([*taken, (job, n)]) - room_s
                n -= max(1, int(over_s / max(piece.k_token for piece in latency.pieces)))
            if n > 0:
                taken.append((job, n))
                left -= n
            if n == job.todo and job.promised:  # its first token comes when this batch ends
                room_s = min(room_s, max(self._seconds(taken), self.urgency_s(job) - HOP_S - now_s))
        return taken, self._seconds(taken)

    def urgency_s(self, job: Job) -> float:
        """When a prompt must be done: earlier if its decoder goes elsewhere, where a batch may be under way."""
        return job.due_s() - self.head_start_s(job)

    def decode_s(self, more: int) -> float:
        """An iteration of the promised that are or will be here, and so many tokens of context more."""
        contexts = [job.context for job in self.jobs if job.promised and not job.todo]
        return self.worker.latency.decode_seconds(len(contexts) + 1, sum(contexts) + more)

    def _seconds(self, taken: Sequence[tuple[Job, int]]) -> float:
        if not taken:
            return 0.0
        kv = sum(job.context for job, _ in taken if not job.todo)
        attended = sum(n * (job.computed + n / 2) for job, n in taken if job.todo)
        tokens = sum(n for _, n in taken)
        return self.worker.latency.seconds(Batch(tokens, len(taken), kv, attended))


class Follower:
    """Runs jobs to their end; events are processed in order of time, ties in order of creation."""

    def __init__(
        self, policy: Policy, workers: Iterable[Worker], survival: Survival | None = None, elastic: bool = True
    ) -> None:
        self.policy = policy
        self.survival = survival
        self.elastic = elastic
        self.engines = {worker.id: Engine(worker, self._head_start_s) for worker in workers}
        self.jobs: dict[str, Job] = {}
        self.held: dict[str, Held] = {}
        self.plans: list[tuple[ClusterState, float, Plan]] = []
        self.most_kv: dict[str, int] = dict.fromkeys(self.engines, 0)
        self.keep_plans = False
        self._events: list[tuple[float, int, str, str]] = []
        self._count = 0
        self._wake_s = math.inf
        self._cycle = 0

    def run(self, jobs: Sequence[Job], until_s: float = 1e4) -> None:
        self.jobs = {job.held.id: job for job in jobs}
        for job in jobs:
            self._at(job.held.arrival_s, "arrive", job.held.id)
        while self._events:
            now_s, _, kind, name = heapq.heappop(self._events)
            assert now_s < until_s, "work is left undone"
            if kind == "wake" and now_s != self._wake_s:
                continue
            if kind == "arrive":
                self.held[name] = self.jobs[name].held
            elif kind == "end":
                self._end_batch(self.engines[name], now_s)
            self._plan(now_s)
            for engine in self.engines.values():
                self._start_batch(engine, now_s)

    def _at(self, time_s: float, kind: str, name: str) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, kind, name))

    def _plan(self, now_s: float) -> None:
        if not self.held:
            return
        self._cycle += 1
        running = RunningTable(self._running(job, now_s) for e in self.engines.values() for job in e.jobs)
        workers = {
            e.worker.id: replace(e.worker, busy_until_s=e.busy_until_s if e.running else 0.0)
            for e in self.engines.values()
        }
        state = ClusterState(self._cycle, list(self.held.values()), running, workers, HOP_S, self.survival)
        plan = self.policy.plan(state, now_s)
        if self.keep_plans:
            self.plans.append((replace(state, running=tuple(running)), now_s, plan))
        for name, decision in plan.dispatch.items():
            self._dispatch(self.jobs[name], decision, now_s)
        for name in plan.defer:
            self.held[name] = replace(self.held[name], deferred=True)
        for name in plan.reject:
            self.jobs[name].rejected = True
            del self.held[name]
        self._wake_s = math.inf if plan.wake_s is None else max(plan.wake_s, now_s + 1e-4)
        if plan.wake_s is not None:
            self._at(self._wake_s, "wake", "")

    def _running(self, job: Job, now_s: float) -> Running:
        assert job.decision is not None
        return Running(
            id=job.held.id,
            tier=job.held.tier,
            objective=job.held.objective if job.promised else None,
            prefill_worker=job.decision.prefill_worker or "",
            decode_worker=job.decision.decode_worker or "",
            todo_tokens=0 if job.times_s else job.todo,
            context_tokens=job.context,
            generated_tokens=len(job.times_s),
            max_tokens=job.held.max_tokens,
            first_token_s=job.times_s[0] if job.times_s else None,
            dispatched_s=now_s if not job.times_s else job.dispatched_s,
            seen_s=now_s,
        )

    def _dispatch(self, job: Job, decision: Decision, now_s: float) -> None:
        del self.held[job.held.id]
        job.decision, job.dispatched_s, job.todo = decision, now_s, job.held.need_tokens
        job.at, job.ready_s = decision.prefill_worker or "", now_s
        self.engines[job.at].jobs.append(job)

    def _head_start_s(self, job: Job) -> float:
        """How long a hand-off may take beyond a TPOT: the target's batch under way, and one of its own."""
        assert job.decision is not None
        target = self.engines[job.decision.decode_worker or ""]
        if target.worker.id == job.at or job.held.objective is None:
            return 0.0
        step_s = target.decode_s(job.context)
        decodes_only = not self.elastic and target.worker.prefers is Stage.DECODE
        wait_s = step_s if decodes_only and all(one.promised for one in target.jobs) else target.longest_s
        return max(0.0, HOP_S + wait_s + step_s - job.held.objective.tpot_s)

    def _start_batch(self, engine: Engine, now_s: float) -> None:
        if engine.running or not engine.jobs:
            return
        taken, seconds = engine.batch(now_s)
        if not taken:
            return
        for job, n in sorted(taken, key=lambda one: not one[0].promised):
            job.computed += n
            job.todo = max(0, job.todo - n)
            if not job.todo:
                job.makes_token = True
            self._evict(engine)
        self.most_kv[engine.worker.id] = max(self.most_kv[engine.worker.id], engine.kv_tokens())
        engine.running, engine.busy_until_s = True, now_s + seconds
        self._at(engine.busy_until_s, "end", engine.worker.id)

    def _evict(self, engine: Engine) -> None:
        """Best effort gives its KV back, the latest first, and will be computed anew."""
        limit = engine.worker.total_blocks * engine.worker.block_size
        for job in sorted(engine.jobs, key=lambda job: -job.dispatched_s):
            if engine.kv_tokens() > limit and not job.promised:
                job.todo, job.computed, job.makes_token = job.context, 0, False

    def _end_batch(self, engine: Engine, now_s: float) -> None:
        engine.running = False
        for job in [job for job in engine.jobs if job.makes_token]:
            job.makes_token = False
            job.times_s.append(now_s + HOP_S)
            target = (job.decision and job.decision.decode_worker) or ""
            if len(job.times_s) >= job.output:
                engine.jobs.remove(job)
            elif target != engine.worker.id:
                engine.jobs.remove(job)
                self.engines[target].jobs.append(job)
                job.at, job.ready_s = target, now_s + HOP_S
                self._at(job.ready_s, "pulled", target)
