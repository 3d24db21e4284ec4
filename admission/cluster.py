"""What the planner knows of the workers and of the requests that it has given them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from admission.memory import Survival, SurvivalLearner
from admission.plan import Held, Running, Worker
from admission.table import RunningTable
from common.messages import Decision, Progress, Record, Verdict, WorkerState
from common.slo import Objective


class Cluster:
    """Live workers and dispatched requests, kept up to date by heartbeats and progress.

    What it learns of output lengths outlives :meth:`clear`.
    """

    def __init__(self) -> None:
        self._states: dict[str, WorkerState] = {}
        self._running = RunningTable()
        self._attempts: dict[str, int] = {}
        self._lengths = SurvivalLearner()
        self._stepped_s: dict[str, float] = {}
        self._busy_until_s: Mapping[str, float] = {}
        self._seen: dict[str, _Seen] = {}
        self._workers: Mapping[str, Worker] | None = None

    @property
    def workers(self) -> Mapping[str, Worker]:
        """Workers that may get work, by id; each is the same object for as long as nothing new is known of it."""
        if self._workers is None:
            self._seen = {state.id: self._look(state) for state in self._states.values() if _able(state)}
            self._workers = {name: seen.worker for name, seen in self._seen.items()}
        return self._workers

    def _look(self, state: WorkerState) -> "_Seen":
        seen = self._seen.get(state.id)
        stepped_s, busy_until_s = self._stepped_s.get(state.id, 0.0), self._busy_until_s.get(state.id, 0.0)
        if seen is not None and seen[:3] == (state, stepped_s, busy_until_s):
            return seen
        return _Seen(state, stepped_s, busy_until_s, _worker(state, stepped_s, busy_until_s))

    @property
    def states(self) -> Mapping[str, WorkerState]:
        """Last heartbeat of every live worker."""
        return self._states

    @property
    def running(self) -> RunningTable:
        """Dispatched requests that have not ended; not to be changed."""
        return self._running

    @property
    def survival(self) -> Survival:
        """How long outputs of each tier are, as far as it is known."""
        return self._lengths.snapshot((running.tier, running.generated_tokens) for running in self._running)

    def beat(self, states: Mapping[str, WorkerState | None]) -> list[str]:
        """Take in heartbeats; returns the workers that have fallen silent."""
        self._states = {name: state for name, state in states.items() if state is not None}
        self._stepped_s = {name: time_s for name, time_s in self._stepped_s.items() if name in self._states}
        self._workers = None
        return [name for name, state in states.items() if state is None]

    def busy(self, until_s: Mapping[str, float]) -> None:
        """Take in until when workers said that their iterations last."""
        self._busy_until_s = until_s
        self._workers = None

    def dispatched(self, held: Held, decision: Decision, attempt: int) -> None:
        """A request was given to its prefill worker."""
        assert decision.prefill_worker is not None
        assert decision.decode_worker is not None
        self._attempts[held.id] = attempt
        running = Running(
            id=held.id,
            tier=held.tier,
            objective=held.objective if decision.verdict is Verdict.ADMITTED else None,
            prefill_worker=decision.prefill_worker,
            decode_worker=decision.decode_worker,
            todo_tokens=held.need_tokens,
            context_tokens=held.need_tokens,
            generated_tokens=held.generated_tokens,
            max_tokens=held.max_tokens,
            first_token_s=held.first_token_s,
            dispatched_s=decision.decided_s,
            dispatched_tokens=held.generated_tokens,
        )
        self._running.put(running)

    def adopt(self, record: Record) -> None:
        """A former leader had dispatched this request."""
        request, decision = record.request, record.decision
        if decision is None or record.prefill_worker is None or record.decode_worker is None:
            return
        objective = None
        promised = decision.verdict is Verdict.ADMITTED
        if promised and decision.tpot_ms is not None and decision.ttft_ms is not None:
            thinking = decision.thinking_tpot_ms
            objective = Objective(
                request.arrival_s,
                decision.ttft_ms / 1e3,
                decision.tpot_ms / 1e3,
                None if thinking is None else thinking / 1e3,
            )
        context = len(request.prompt) + len(record.generated)
        self._attempts[request.id] = record.attempt
        running = Running(
            id=request.id,
            tier=request.tier,
            objective=objective,
            prefill_worker=record.prefill_worker,
            decode_worker=record.decode_worker,
            todo_tokens=0 if record.generated else context,
            context_tokens=context,
            generated_tokens=len(record.generated),
            max_tokens=max(1, request.sampling.max_tokens - len(record.generated)),
            first_token_s=record.notes.get("first_token_s", decision.decided_s) if record.generated else None,
            dispatched_s=decision.decided_s,
            dispatched_tokens=len(record.generated),
        )
        self._running.put(running)

    def progressed(self, progress: Progress) -> Running | None:
        """A first token or an end; returns the request if it has ended. An older attempt's is ignored.

        Either came when an iteration of its worker ended.
        """
        self._stepped_s[progress.worker] = max(progress.time_s, self._stepped_s.get(progress.worker, 0.0))
        self._workers = None
        running = self._running.get(progress.id)
        if running is None or self._attempts.get(progress.id) != progress.attempt:
            return None
        if progress.ended:
            limit = running.dispatched_tokens + running.max_tokens
            self._lengths.observe(running.tier, progress.generated, ended=progress.generated < limit)
            self.forget(progress.id)
            return running
        self._running.put(
            replace(
                running,
                todo_tokens=0,
                generated_tokens=progress.generated,
                context_tokens=running.context_tokens + progress.generated - running.generated_tokens,
                first_token_s=running.first_token_s or progress.time_s,
                seen_s=progress.time_s,
            )
        )
        return None

    def forget(self, request_id: str) -> None:
        """The request has ended or waits again."""
        self._running.remove(request_id)
        self._attempts.pop(request_id, None)

    def clear(self) -> None:
        """Forget everything; a new leader reads it again."""
        self._states.clear()
        self._stepped_s.clear()
        self._running.clear()
        self._attempts.clear()
        self._workers = None


class _Seen(NamedTuple):
    """What a worker was made of, and the worker."""

    state: WorkerState
    stepped_s: float
    busy_until_s: float
    worker: Worker


def _able(state: WorkerState) -> bool:
    return state.ready and not state.draining


def _worker(state: WorkerState, stepped_s: float, busy_until_s: float) -> Worker:
    return Worker(
        id=state.id,
        prefers=state.prefers,
        may=frozenset(state.may),
        latency=state.latency,
        max_seqs=state.max_seqs,
        max_batch_tokens=state.max_batch_tokens,
        block_size=state.block_size,
        total_blocks=state.total_blocks,
        free_blocks=state.free_blocks,
        running=state.running,
        fingerprint=state.fingerprint,
        step_s=_measured(state.step_ms / 1e3, 0.0),
        draft_tokens=max(1.0, _measured(state.draft_tokens)),
        pull_s=_measured(state.pull_s_per_token, 0.0),
        stepped_s=stepped_s,
        busy_until_s=busy_until_s,
        slowdown=_measured(state.slowdown),
    )


def _measured(value: float, unknown: float = 1.0) -> float:
    """A figure of a heartbeat that plans multiply by; ``unknown`` for one that can't be."""
    return value if math.isfinite(value) and value > 0 else unknown
