"""Workers as the rows of a plan's :class:`admission.lane_arrays.Fleet`."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from admission.lane_arrays import FLEET, PIECES, Fleet
from admission.memory import KV_LIMIT
from admission.plan import Worker
from common.batching import Former
from common.batching_table import WHOLE
from common.latency_model import Batch, LatencyModel
from common.messages import Stage

NEWS_S = 0.01
"""So long after its expected end an iteration counts as about to end: it may be late, and so may the news."""

LEAST_BATCH = 32
"""Tokens of a batch that an engine makes however long that takes."""


class Fleets:
    """Makes fleets, and keeps each worker's row for as long as nothing that it follows from has changed.

    Batches of ``longest_steps`` steps of a single token are counted on, or of :data:`LEAST_BATCH` tokens if those last
    longer, and ``draft_trust`` of what drafts are seen to add to an iteration.
    """

    def __init__(self, longest_steps: float = math.inf, draft_trust: float = 0.0) -> None:
        self._longest_steps = longest_steps
        self._draft_trust = draft_trust
        self._kept: dict[tuple[str, float], tuple[Worker, tuple[Any, ...], bytes]] = {}

    def of(self, workers: Sequence[Worker], now_s: float, stretch: float = 1.0) -> Fleet:
        """Columns of workers, in the order given; every cost is multiplied by ``stretch``."""
        kinds: dict[str, int] = {}
        if len(self._kept) > 2 * len(workers) + 64:
            self._kept.clear()
        fleet = np.frombuffer(b"".join([self._row(worker, stretch) for worker in workers]), FLEET).copy()
        fleet["kind"] = [kinds.setdefault(worker.fingerprint, len(kinds)) for worker in workers]
        fleet["ready_s"] = [max(0.0, worker.busy_until_s - now_s) for worker in workers]
        fleet["since_s"] = [_since_s(worker, now_s) for worker in workers]
        return cast(Fleet, fleet)

    def _row(self, worker: Worker, stretch: float) -> bytes:
        key = worker.id, stretch
        kept = self._kept.get(key)
        if kept is not None and kept[0] is worker:
            return kept[2]
        follows_from = (
            worker.latency, worker.max_batch_tokens, worker.max_seqs, worker.total_blocks, worker.block_size,
            worker.may, worker.prefers, worker.step_s, worker.draft_tokens, worker.pull_s, worker.slowdown,
        )  # fmt: skip
        row = kept[2] if kept is not None and kept[1] == follows_from else self._made(worker, stretch)
        self._kept[key] = worker, follows_from, row
        return row

    def _made(self, worker: Worker, stretch: float) -> bytes:
        """All but what :meth:`of` fills in."""
        prefills, decodes = Stage.PREFILL in worker.may, Stage.DECODE in worker.may
        row = np.zeros((), FLEET)
        latency = worker.latency.scaled(worker.slowdown)
        values = _costs(latency, worker.max_batch_tokens, stretch, self._longest_steps) | {
            "max_seqs": worker.max_seqs,
            "kv": KV_LIMIT * worker.total_blocks * worker.block_size,
            "block": worker.block_size,
            "prefills": prefills,
            "decodes": decodes,
            "likes_prefill": prefills and worker.prefers is Stage.PREFILL,
            "likes_decode": decodes and worker.prefers is Stage.DECODE,
            "step_s": worker.step_s,
            "made": 1 + self._draft_trust * (worker.draft_tokens - 1),
            "pull_s": worker.pull_s,
        }
        for name, value in values.items():
            row[name] = value
        return row.tobytes()


def _since_s(worker: Worker, now_s: float) -> float:
    """How long ago an iteration ended that another may have followed; negative where it is not to be guessed."""
    if now_s < worker.busy_until_s + NEWS_S:
        return -1.0
    ended_s = max(worker.stepped_s, worker.busy_until_s)
    return now_s - ended_s if ended_s > 0 else -1.0


def _costs(latency: LatencyModel, max_batch_tokens: int, stretch: float, longest_steps: float) -> dict[str, Any]:
    pieces = [latency.pieces[min(j, len(latency.pieces) - 1)] for j in range(PIECES)]
    k_token = tuple(piece.k_token * stretch for piece in pieces)
    longest_s = longest_steps * latency.decode_seconds(1, 0)
    fit = max_batch_tokens if math.isinf(longest_s) else latency.tokens_within(longest_s, seqs=1)
    max_batch = min(max_batch_tokens, max(LEAST_BATCH, fit))
    whole = min(max_batch_tokens, latency.tokens_within(Former().within(latency, WHOLE), seqs=1))
    return {
        "k_token": k_token,
        "base": tuple(piece.base * stretch for piece in pieces),
        "pieces": min(PIECES, len(latency.pieces)),
        "k_seq": latency.k_seq * stretch,
        "k_kv": latency.k_kv * stretch,
        "attention": latency.k_attn * stretch / max(k_token),
        "max_batch": max_batch,
        "longest_s": stretch * latency.seconds(Batch(max_batch, seqs=1)),
        "wait_s": stretch * latency.seconds(Batch(max(max_batch, whole), seqs=1)),
    }
