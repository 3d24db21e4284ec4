"""Speculation inside vLLM's scheduler: how long drafts are, by tier, and that nobody drafts when nobody verifies.

Part of the file family that touches vLLM's internals.
"""

from collections.abc import Iterable
from math import inf
from typing import Any

import numpy as np

from common.batching import Columns
from common.batching_table import Ints
from common.draft_costs import DraftCosts
from common.engine.promises import Promise
from common.engine.simulated import DEFAULT_LATENCY
from common.engine.vllm_scheduler import Observed
from common.latency_model import Batch
from common.speculation import Acceptance, Tier, draft_lengths, warm_up

_REPLAN_STEPS = 4
_TRY_EVERY = 16
"""Of so many plans one tries another length, or what it would cost and gain would never be learned."""
_VERIFICATION_SHARE = 0.02
"""What one verification counts for in how many tokens they give."""


class Drafting(Observed):
    """Mixin over vLLM's schedulers; the batch policy on top of it fills ``_promises`` and ``_grants``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._promises: dict[str, Promise] = {}
        self._grants: dict[str, int] | None = None
        self._latency = DEFAULT_LATENCY
        self._acceptance: dict[str, Acceptance] = {}
        self._lengths: dict[str, int] = {}
        self._longest = 0
        self._drafts_planned: tuple[Any, ...] = ()
        self._plans = self._steps = 0
        self._drafted_before = -1
        self._draft_tokens = 1.0
        super().__init__(*args, **kwargs)
        if self.num_spec_tokens:  # type: ignore[attr-defined]
            # A lookup, even a constant one, keeps vLLM from padding first decodes with drafts that nobody proposed.
            most = self.num_spec_tokens  # type: ignore[attr-defined]
            self._costs = DraftCosts(most)
            warm_up()
            self.dynamic_sd_lookup = [most] * (self.max_num_running_reqs + 1)  # type: ignore[attr-defined]

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        if self._grants is not None and scheduler_output.num_spec_tokens_to_schedule:
            scheduler_output.num_spec_tokens_to_schedule = self._longest
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]
        self._drop_seeded_drafts(scheduler_output.num_scheduled_tokens)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Take drafts, but none for a seeded request: verifying them would change what its seed gives."""
        super().update_draft_token_ids(draft_token_ids)  # type: ignore[misc]
        self._drop_seeded_drafts(draft_token_ids.req_ids)

    def _drop_seeded_drafts(self, request_ids: Iterable[str]) -> None:
        if self.num_spec_tokens:  # type: ignore[attr-defined]
            for request_id in request_ids:
                promise, request = self._promises.get(request_id), self.requests.get(request_id)  # type: ignore[attr-defined]
                if promise is not None and promise.seeded and request is not None:
                    request.spec_token_ids = []

    def _verified(self, promise: Promise, drafted: int, accepted: int) -> None:
        if drafted:
            known = self._acceptance.get(promise.tier, Acceptance())
            self._acceptance[promise.tier] = known.observe(drafted, accepted)
            self._draft_tokens += _VERIFICATION_SHARE * (1 + accepted - self._draft_tokens)

    def _exports(self) -> dict[str, float]:
        return {**super()._exports(), "draft_tokens": self._draft_tokens}

    def _measured(self, batch: tuple[float, ...], seconds: float) -> None:
        """Learn what drafting costs, from decode steps that verify as many drafts as they propose."""
        tokens, seqs, kv_tokens, attended, drafts = batch
        if self.num_spec_tokens and attended == 0 and drafts == self._drafted_before:  # type: ignore[attr-defined]
            predicted_s = self._latency.seconds(Batch(int(tokens), int(seqs), int(kv_tokens), 0.0, int(drafts)))
            self._costs.observe(int(seqs), int(drafts), seconds, predicted_s)
        self._drafted_before = int(drafts) if attended == 0 else -1

    def _limit_drafts(self, columns: Columns, free_blocks: int, now_s: float) -> None:
        """Choose lengths now and then, or when prompts begin or end to wait, and cut present drafts to them."""
        decoding = columns.running & (columns.todo_tokens <= 1)
        prompts_wait = bool((~decoding & (columns.promised | ~columns.promised.any())).any())
        promises = [self._promises[id_] for id_ in columns.ids]
        decoding &= ~np.array([promise.seeded for promise in promises], dtype=np.bool_)
        decoding &= columns.promised | ~columns.promised.any()
        planned = (prompts_wait, int(decoding.sum()), self._steps // _REPLAN_STEPS)
        if planned != self._drafts_planned:
            self._drafts_planned = planned
            self._plans += 1
            self._lengths = self._draft_lengths(columns, np.flatnonzero(decoding), prompts_wait, free_blocks, now_s)
        lengths = self._lengths
        wanted = np.array([lengths.get(p.tier, 0) if p.drafts is None else p.drafts for p in promises], dtype=np.int64)
        self._longest = min(int(wanted.max(initial=0)), self.num_spec_tokens)  # type: ignore[attr-defined]
        np.minimum(columns.drafts, np.where(decoding, wanted, 0), out=columns.drafts)

    def _draft_lengths(
        self, columns: Columns, decoders: Ints, prompts_wait: bool, free_blocks: int, now_s: float
    ) -> dict[str, int]:
        scheduler: Any = self
        context: dict[str, list[int]] = {}
        for index in decoders.tolist():
            tier = self._promises[columns.ids[index]].tier
            context.setdefault(tier, []).append(int(columns.context_tokens[index]))
        distances = columns.due_s[decoders] - now_s
        ahead = distances[np.isfinite(distances) & (distances > 0)]
        known = self._acceptance
        lengths = draft_lengths(
            {tier: Tier(len(of), sum(of), known.get(tier, Acceptance())) for tier, of in context.items()},
            self._latency,
            prompts_wait=prompts_wait,
            kv_used=1 - free_blocks / scheduler.kv_cache_manager.block_pool.num_gpu_blocks,
            budget_s=float(ahead.min()) if len(ahead) else inf,
            most=scheduler.num_spec_tokens,
            factors=self._costs.factors(len(decoders)),
        )
        if self._plans % _TRY_EVERY == 0 and not prompts_wait:
            lengths = {tier: self._another(length) for tier, length in lengths.items()}
        return lengths

    def _another(self, length: int) -> int:
        """A length to try in place of the best known: one more, one less, or much longer."""
        choices = (length + 1, length - 1, 2 * length + 1)
        most: int = self.num_spec_tokens  # type: ignore[attr-defined]
        return min(max(choices[self._plans // _TRY_EVERY % 3], 0), most)
