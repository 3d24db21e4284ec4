"""A worker's commitments while a plan is made: prefill backlog, decoders and KV, and what one more would do."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from admission.plan import ClusterState, Held, Worker
from common.messages import Stage

KV_LIMIT = 0.97
"""Share of a worker's KV that may be committed."""


@dataclass(slots=True)
class Lane:
    """One worker during planning. Times in seconds, ``backlog_*`` is prefill that it has or was promised."""

    worker: Worker
    backlog_tokens: int = 0
    backlog_s: float = 0.0
    decoders: int = 0
    kv_tokens: int = 0
    committed_tokens: int = 0
    tightest_tpot_s: float = math.inf
    sent_tokens: int = field(default=0)

    def prefill_s(self, tokens: int) -> float:
        """How long a prompt takes here, with the decoders that ride in the same batches."""
        latency, limit = self.worker.latency, self.worker.max_batch_tokens
        batches = math.ceil(tokens / limit)
        riders = latency.k_seq * self.decoders + latency.k_kv * self.kv_tokens
        return latency.prefill_seconds(tokens, limit) + batches * riders

    def step_s(self, more_seqs: int = 0, more_kv_tokens: int = 0) -> float:
        """Length of a decode iteration with that many more sequences."""
        return self.worker.latency.decode_seconds(self.decoders + more_seqs, self.kv_tokens + more_kv_tokens)

    def fits(self, held: Held, tpot_s: float) -> bool:
        """Whether one more decoder keeps everyone's TPOT, the sequence limit and the KV."""
        tokens = held.need_tokens + held.max_tokens
        return (
            self.decoders < self.worker.max_seqs
            and self.step_s(1, held.need_tokens) <= min(tpot_s, self.tightest_tpot_s)
            and self.committed_tokens + tokens <= KV_LIMIT * self.worker.total_blocks * self.worker.block_size
        )

    def add_prefill(self, tokens: int, seconds: float) -> None:
        """Commit to a prompt."""
        self.backlog_tokens += tokens
        self.backlog_s += seconds

    def add_decoder(self, context_tokens: int, total_tokens: int, tpot_s: float) -> None:
        """Commit to a decoder."""
        self.decoders += 1
        self.kv_tokens += context_tokens
        self.committed_tokens += total_tokens
        self.tightest_tpot_s = min(self.tightest_tpot_s, tpot_s)


def lanes_of(state: ClusterState, now_s: float) -> dict[str, Lane]:
    """All live workers with what they have been given already; a worker runs its prompts in the order it got them."""
    lanes = {worker.id: Lane(worker) for worker in state.workers.values()}
    for running in state.running:
        tpot_s = (
            running.objective.current_tpot_s(running.objective.thinking_tpot_s is not None)
            if running.objective
            else math.inf
        )
        decode = lanes.get(running.decode_worker)
        if decode is not None:
            total = running.context_tokens + max(0, running.max_tokens - running.generated_tokens)
            decode.add_decoder(running.context_tokens, total, tpot_s)
    free_s = dict.fromkeys(lanes, now_s)
    for running in sorted(state.running, key=lambda running: running.dispatched_s):
        prefill = lanes.get(running.prefill_worker)
        if prefill is not None and running.todo_tokens:
            start_s = min(now_s, running.dispatched_s) if not prefill.backlog_tokens else free_s[prefill.worker.id]
            free_s[prefill.worker.id] = start_s + prefill.prefill_s(running.todo_tokens)
            prefill.backlog_tokens += running.todo_tokens
            prefill.sent_tokens += running.todo_tokens
    for name, lane in lanes.items():
        lane.backlog_s = max(0.0, free_s[name] - now_s)
    return lanes


def pool(lanes: Iterable[Lane], stage: Stage) -> Sequence[Lane]:
    """Who does a stage: those that prefer it, or whoever may if none does."""
    able = [lane for lane in lanes if stage in lane.worker.may]
    return [lane for lane in able if lane.worker.prefers == stage] or able
