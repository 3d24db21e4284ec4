"""One engine under several batch policies in turn, so that a comparison shares engine, memory and machine.

A job of tier ``switch:<policy>`` changes the policy when it arrives: ``slo``, ``stock:<chunk>`` for vLLM's own
scheduling with so many batched tokens, ``drafts:<n>`` for token deadlines with drafts of fixed length.
"""

from typing import Any

from bench.engine_runs import SWITCH
from common.engine.vllm_batching import Planned, PlannedScheduler
from common.engine.vllm_scheduler import terms_of


class SwitchedScheduler(PlannedScheduler):
    """Loaded by vLLM by its import path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._policy = "slo"
        self._number = 0
        super().__init__(*args, **kwargs)
        self._most_tokens: int = self.max_num_scheduled_tokens

    def add_request(self, request: Any) -> None:
        """Switch if the request says so."""
        tier = terms_of(request).get("tier", "")
        if tier.startswith(SWITCH):
            self._policy, _, number = tier.removeprefix(SWITCH).partition(":")
            self._number = int(number or 0)
            self._drafts_planned = ()
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """By the present policy."""
        stock = self._policy == "stock"
        self.max_num_scheduled_tokens = self._number if stock else self._most_tokens
        if stock:
            return super(Planned, self).schedule(*args, **kwargs)
        return super().schedule(*args, **kwargs)

    def _draft_lengths(self, columns: Any, decoders: Any, *rest: Any) -> dict[str, int]:
        if self._policy == "drafts":
            return dict.fromkeys((self._promises[columns.ids[index]].tier for index in decoders), self._number)
        return super()._draft_lengths(columns, decoders, *rest)
