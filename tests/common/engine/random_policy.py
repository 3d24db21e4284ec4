"""Batches drawn at random, for engines whose tokens must not depend on how they are batched. Imported by vLLM."""

import os
import random
from pathlib import Path
from typing import Any

from common.batching import Batch, BatchState, Candidate
from common.engine.vllm_batching import Planned, PlannedAsyncScheduler, PlannedScheduler
from tests.common.engine.support import LONGEST


class Random(Planned):
    """Skips, cuts, preempts and drafts at random, and fails now and then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rng = random.Random(7)

    def _all_decode(self) -> None:
        """Draw for every batch."""

    def _form(self, state: BatchState, now_s: float) -> Batch:
        if LONGEST in os.environ:
            with Path(os.environ[LONGEST]).open("a") as file:
                file.write(f"{state.former.longest_s}\n")
        if self._rng.random() < 0.05:
            raise RuntimeError("drawn")
        rows = state.columns.rows()
        self._rng.shuffle(rows)
        preempt = tuple(row.id for row in rows if row.running and self._rng.random() < 0.02)
        chosen = [row for row in rows if row.id not in preempt and (row.remote or self._rng.random() < 0.7)]
        return Batch({row.id: self._tokens(row) for row in chosen}, {}, preempt, 0.01, 0.0)

    def _tokens(self, row: Candidate) -> int:
        if row.remote:
            return 0
        if row.running and row.todo_tokens <= 1:
            return 1 + self._rng.randint(0, row.drafts)
        return self._rng.choice((1, 7, 64, row.todo_tokens))

    def _draft_lengths(self, *_: Any) -> dict[str, int]:
        return {"": self._rng.choice((0, 1, 3, self.num_spec_tokens))}  # type: ignore[attr-defined] # of vLLM's scheduler


class RandomScheduler(Random, PlannedScheduler):
    """Over vLLM's synchronous scheduler."""


class RandomAsyncScheduler(Random, PlannedAsyncScheduler):
    """Over the scheduler that counts tokens before they are there."""
