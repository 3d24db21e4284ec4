"""The product's batch policy on the simulated engine: :func:`common.batching.form_batch` over its sequences."""

from collections.abc import Mapping
from math import inf

import numpy as np

from common.batching import Batch, BatchState, Columns, Former, Pull, form_batch, with_pulls
from common.engine.promises import Promise
from common.engine.simulated_core import Core, Phase, Sequence
from common.latency_model import LatencyModel

_NOTHING = Promise(tier="", arrival_s=0.0, objective=None)


class SlackBatches:
    """One engine's; remembers what best effort is owed."""

    def __init__(self, former: Former) -> None:
        self._former = former
        self._credit_tokens = 0.0

    def form(self, core: Core, latency: LatencyModel, now_s: float) -> tuple[Batch, Mapping[str, Sequence]]:
        """The next batch, and the sequences by the names that it has for them."""
        pulling = [one for one in core.running if one.phase is Phase.PULLING]
        sequences = [*(one for one in core.running if one.phase is Phase.RUNNING), *core.waiting]
        named = {str(number): one for number, one in enumerate(sequences)}
        state = BatchState(
            columns=_columns(list(named), sequences),
            latency=latency,
            free_blocks=core.free_blocks,
            block_size=core.block_size,
            max_tokens=core.max_batch_tokens,
            max_seqs=core.max_seqs - len(pulling),
            credit_tokens=self._credit_tokens,
            former=self._patient([*pulling, *(one for one in core.waiting if one.pull_first)], core, latency, now_s),
        )
        batch = form_batch(state, now_s)
        self._credit_tokens = batch.credit_tokens
        return batch, named

    def _patient(self, pulls: list[Sequence], core: Core, latency: LatencyModel, now_s: float) -> Former:
        """Batches that leave time for what is pulled, or will be from this one on."""
        if not pulls:
            return self._former
        step_s = latency.decode_seconds(len(core.running) + 1, sum(one.computed for one in core.running))
        promises = [one.promise or _NOTHING for one in pulls]
        return with_pulls(
            self._former, [Pull(one.due_s, one.tpot_s, one.checked_in) for one in promises], now_s, step_s
        )


def _columns(names: list[str], sequences: list[Sequence]) -> Columns:
    promises = [one.promise or _NOTHING for one in sequences]
    due_s = np.array([one.due_s for one in promises], dtype=float)
    return Columns(
        ids=names,
        todo_tokens=np.array([one.todo for one in sequences], dtype=np.int64),
        context_tokens=np.array([one.computed for one in sequences], dtype=np.int64),
        arrival_s=np.array([one.arrival_s for one in promises], dtype=float),
        due_s=due_s,
        tpot_s=np.array([one.tpot_s for one in promises], dtype=float),
        checked_in=np.array([one.checked_in for one in promises], dtype=np.int64),
        drafts=np.zeros(len(sequences), dtype=np.int64),
        promised=due_s < inf,
        running=np.array([one.phase is Phase.RUNNING for one in sequences], dtype=np.bool_),
        remote=np.array([one.pull_first for one in sequences], dtype=np.bool_),
    )
