"""The product's batch former and speculation rule, called as the engine host calls them."""

from collections.abc import Mapping
from functools import lru_cache
from math import floor, inf

import numpy as np

from bench.simulator.book import Book, Ints, checked_in
from bench.simulator.formers.interface import NONE, Formed, View
from common.batching import Batch, BatchState, Columns, Pull, form_batch, with_pulls
from common.batching import Former as Options
from common.latency_model import LatencyModel
from common.speculation import CROWDED_KV, MOST, Acceptance, Tier, draft_lengths

BUDGET_STEP_S = 0.002

REPLAN_STEPS = 16
"""Draft lengths are chosen anew after so many iterations, or when prompts begin or end to wait."""


class SlackFormer:
    """One per engine; learns acceptance by tier."""

    def __init__(self, options: Options, reply_s: float, most_drafts: int = MOST, always_draft: bool = False) -> None:
        self._options = options
        self._reply_s = reply_s
        self._most_drafts = most_drafts
        self._always_draft = always_draft
        self._credit_tokens = 0.0
        self._acceptance: dict[int, Acceptance] = {}
        self._lengths: Mapping[str, int] = {}
        self._planned_for: tuple[bool, int, int] | None = None
        self._steps = 0

    def form(self, view: View, now_s: float) -> Formed:
        """By :func:`common.batching.form_batch`."""
        self._steps += 1
        columns = self._columns(view)
        if self._most_drafts and view.preset.drafts:
            self._draft(view, columns, now_s)
        state = BatchState(
            columns=columns,
            latency=view.preset.latency,
            free_blocks=view.free_blocks,
            block_size=view.preset.block_size,
            max_tokens=view.max_tokens,
            max_seqs=view.preset.max_seqs,
            credit_tokens=self._credit_tokens,
            former=self._patient(view, columns, now_s),
        )
        batch = form_batch(state, now_s)
        self._credit_tokens = batch.credit_tokens
        return _formed(batch, view.book)

    def verified(self, tier: int, drafted: int, accepted: int) -> None:
        """Learn."""
        self._acceptance[tier] = self._acceptance.get(tier, Acceptance()).observe(drafted, accepted)

    def _patient(self, view: View, columns: Columns, now_s: float) -> Options:
        """Batches that leave time for what is pulled, or will be from this one on."""
        rows = view.book.rows[np.concatenate((view.members[columns.remote], view.pulling))]
        if not len(rows):
            return self._options
        rows = rows[rows["promised"]]
        due_s, pace_s, next_check = rows["due"] - self._reply_s, rows["pace"], checked_in(rows["count"])
        pulls = map(Pull, due_s.tolist(), pace_s.tolist(), next_check.tolist())
        kv = int(columns.context_tokens[columns.running].sum())
        step_s = view.preset.latency.decode_seconds(int(columns.running.sum()) + 1, kv)
        return with_pulls(self._options, pulls, now_s, step_s)

    def _columns(self, view: View) -> Columns:
        rows = view.book.rows[view.members]
        promised = rows["promised"]
        return Columns(
            ids=[view.book.names[i] for i in view.members.tolist()],
            todo_tokens=rows["prompt"] + rows["count"] - rows["computed"],
            context_tokens=rows["computed"],
            arrival_s=rows["arrival"],
            due_s=np.where(promised, rows["due"] - self._reply_s, inf),
            tpot_s=np.where(promised, rows["pace"], inf),
            checked_in=checked_in(rows["count"]),
            drafts=np.zeros(len(rows), np.int64),
            promised=promised,
            running=rows["running"] & ~rows["remote"],
            remote=rows["remote"],
        )

    def _draft(self, view: View, columns: Columns, now_s: float) -> None:
        """Choose lengths now and then, and propose as many drafts to every decode."""
        decoding = columns.running & (columns.todo_tokens <= 1)
        waiting = ~decoding & (columns.promised | ~columns.promised.any())
        prompts_wait = bool(waiting.any()) and not self._always_draft
        tiers = view.book.rows["tier"][view.members]
        planned_for = (prompts_wait, int(decoding.sum()), self._steps // REPLAN_STEPS)
        if planned_for != self._planned_for:
            self._planned_for = planned_for
            self._lengths = self._choose(view, columns, decoding, tiers, prompts_wait, now_s)
        if not any(self._lengths.values()):
            return
        by_tier = np.zeros(int(tiers.max()) + 1, np.int64)
        for name, length in self._lengths.items():
            if int(name) < len(by_tier):
                by_tier[int(name)] = length
        left = view.book.rows["output"][view.members] - view.book.rows["count"][view.members] - 1
        columns.drafts[:] = np.where(decoding, np.minimum(by_tier[tiers], left), 0)

    def _choose(
        self, view: View, columns: Columns, decoding: np.ndarray, tiers: Ints, prompts_wait: bool, now_s: float
    ) -> Mapping[str, int]:
        distances = (columns.due_s - now_s)[decoding]
        ahead = distances[np.isfinite(distances) & (distances > 0)]
        crowd = []
        for tier in np.unique(tiers[decoding]).tolist():
            of = decoding & (tiers == tier)
            kv = int(columns.context_tokens[of].sum()) if view.preset.latency.k_kv else 0
            rate = self._acceptance.get(tier, Acceptance()).rate
            crowd.append((str(tier), int(of.sum()), round(kv, -3), round(rate, 2)))
        return _lengths(
            tuple(crowd),
            view.preset.latency,
            prompts_wait,
            1 - view.free_blocks / view.preset.blocks >= CROWDED_KV,
            floor(float(ahead.min()) / BUDGET_STEP_S) if len(ahead) else None,
            self._most_drafts,
        )


@lru_cache(maxsize=1 << 16)
def _lengths(
    crowd: tuple[tuple[str, int, int, float], ...],
    latency: LatencyModel,
    prompts_wait: bool,
    crowded: bool,
    budget: int | None,
    most: int,
) -> Mapping[str, int]:
    """:func:`common.speculation.draft_lengths` of rounded figures, remembered: it takes longer than all the rest."""
    return draft_lengths(
        {name: Tier(decodes, kv, Acceptance(100 * rate, 100 * (1 - rate))) for name, decodes, kv, rate in crowd},
        latency,
        prompts_wait=prompts_wait,
        kv_used=1.0 if crowded else 0.0,
        budget_s=inf if budget is None else budget * BUDGET_STEP_S,
        most=most,
    )


def _formed(batch: Batch, book: Book) -> Formed:
    index = book.index
    rows = np.array([index[name] for name in batch.tokens], np.int64)
    tokens = np.array(list(batch.tokens.values()), np.int64)
    drafts = np.zeros(len(rows), np.int64)
    if batch.drafts:
        drafts[:] = [batch.drafts.get(name, 0) for name in batch.tokens]
    preempt = np.array([index[name] for name in batch.preempt], np.int64) if batch.preempt else NONE
    return Formed(rows, tokens, drafts, preempt, batch.seconds)
