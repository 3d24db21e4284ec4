"""Subjects of the batch former's tests, and an engine that follows the latency model exactly."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from common.batching import Batch, BatchState, Candidate, Columns, Former, form_batch
from common.latency_model import Batch as Work
from common.latency_model import LatencyModel, Piece
from common.slo import CHECK_EVERY, Objective

NOW_S = 1_700_000_000.0
_ids = itertools.count(1)


def decoder(**changes: Any) -> Candidate:
    return replace(Candidate(f"d{next(_ids)}", 1, 100, NOW_S - 1, NOW_S + 0.05, 0.05), **changes)


def prompt(**changes: Any) -> Candidate:
    return replace(Candidate(f"p{next(_ids)}", 1000, 0, NOW_S - 0.1, NOW_S + 5, 0.05, running=False), **changes)


def spare(**changes: Any) -> Candidate:
    return replace(Candidate(f"s{next(_ids)}", 1000, 0, NOW_S - 1, promised=False, running=False), **changes)


def make_state(rows: Sequence[Candidate], **changes: Any) -> BatchState:
    """A token costs 0.1 ms and a batch 5 ms."""
    model = LatencyModel((Piece(1e-4, 0.0, 0.005),), k_seq=1e-4)
    state = BatchState(Columns.of(rows), model, 2000, 32, 2048, 256, former=Former(margin=0.0))
    return replace(state, **changes)


def blocks(state: BatchState, tokens: int) -> int:
    return -(-tokens // state.block_size)


def work_of(batch: Batch, rows: Mapping[str, Candidate]) -> Work:
    """The batch as the latency model's features."""
    kv_tokens, attended = 0, 0.0
    for id_, tokens in batch.tokens.items():
        row = rows[id_]
        if tokens > 1 and not (row.running and row.todo_tokens == 1):
            attended += tokens * (row.context_tokens + tokens / 2)
        elif tokens:
            kv_tokens += row.context_tokens
    scheduled = [tokens for tokens in batch.tokens.values() if tokens]
    return Work(sum(scheduled), len(scheduled), kv_tokens, attended, max(batch.drafts.values(), default=0))


@dataclass
class Life:
    """One request in the loop's engine."""

    row: Candidate
    objective: Objective | None
    output_tokens: int
    generated: int = 0
    first_s: float = 0.0


class Loop:
    """An engine whose iterations take exactly as long as predicted, and whose KV is counted block by block."""

    def __init__(self, state: BatchState, rng: random.Random) -> None:
        self.tokens = self.late_tokens = self.best_effort_tokens = self.prompts_done = 0
        self._state, self._rng, self._now_s = state, rng, NOW_S
        self._lives: dict[str, Life] = {}

    @property
    def free_blocks_at_end(self) -> int:
        """Free blocks once everybody still here is gone."""
        return self._state.free_blocks + sum(
            blocks(self._state, life.row.context_tokens) for life in self._lives.values()
        )

    def run(self, seconds: float, tight: int, loose: int, prompts_per_s: float) -> None:
        """Decodes that never end, prompts at random times and best effort that is never done."""
        for number in range(tight + loose):
            self._add(64, 0.05 if number < tight else 0.2, ttft_s=3.0, output_tokens=10**6)
        for _ in range(3):
            self._add(1500, None, ttft_s=0.0, output_tokens=50)
        next_s = self._now_s
        while self._now_s < NOW_S + seconds:
            while next_s <= self._now_s:
                next_s += self._rng.expovariate(prompts_per_s)
                self._add(self._rng.randint(50, 1500), 0.1, ttft_s=3.0, output_tokens=self._rng.randint(1, 30))
            while sum(life.objective is None for life in self._lives.values()) < 3:
                self._add(1500, None, ttft_s=0.0, output_tokens=50)
            self._step()

    def _add(self, tokens: int, tpot_s: float | None, ttft_s: float, output_tokens: int) -> None:
        objective = None if tpot_s is None else Objective(self._now_s, ttft_s, tpot_s)
        row = prompt(todo_tokens=tokens, arrival_s=self._now_s, tpot_s=tpot_s or inf)
        row = replace(row, due_s=self._now_s + ttft_s) if objective else replace(row, due_s=inf, promised=False)
        self._lives[row.id] = Life(row, objective, output_tokens)

    def _step(self) -> None:
        rows = {life.row.id: life.row for life in self._lives.values()}
        state = replace(self._state, columns=Columns.of(list(rows.values())))
        batch = form_batch(state, self._now_s)
        assert batch.tokens
        for id_ in batch.preempt:
            self._preempt(self._lives[id_])
        self._now_s += batch.seconds
        self._state = replace(self._state, credit_tokens=batch.credit_tokens)
        for id_, tokens in batch.tokens.items():
            self._advance(self._lives[id_], tokens)
        assert self._state.free_blocks >= 0

    def _preempt(self, life: Life) -> None:
        self._take(-blocks(self._state, life.row.context_tokens))
        todo = life.row.todo_tokens + life.row.context_tokens
        life.row = replace(life.row, todo_tokens=todo, context_tokens=0, running=False)

    def _advance(self, life: Life, tokens: int) -> None:
        row = life.row
        self._take(blocks(self._state, row.context_tokens + tokens) - blocks(self._state, row.context_tokens))
        row = replace(
            row, context_tokens=row.context_tokens + tokens, todo_tokens=row.todo_tokens - tokens, running=True
        )
        if row.todo_tokens == 0:
            row = self._emit(life, replace(row, todo_tokens=1))
        life.row = row
        if life.generated == life.output_tokens:
            self._take(-blocks(self._state, row.context_tokens))
            del self._lives[row.id]
            self.prompts_done += life.objective is not None

    def _emit(self, life: Life, row: Candidate) -> Candidate:
        life.generated += 1
        self.tokens += 1
        if life.objective is None:
            self.best_effort_tokens += 1
            return row
        life.first_s = life.first_s or self._now_s
        self.late_tokens += self._now_s > row.due_s + 1e-6
        due_s = life.objective.token_due_s(life.generated + 1, life.first_s)
        return replace(row, due_s=due_s, checked_in=CHECK_EVERY - life.generated % CHECK_EVERY)

    def _take(self, count: int) -> None:
        self._state = replace(self._state, free_blocks=self._state.free_blocks - count)
