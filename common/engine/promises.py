"""When each request's next token is due, exactly, also where its earlier tokens came from another engine.

Every token is planned for its own deadline although only each tenth and the last are checked: any token may turn out
to be the last. Which one is checked next matters only to a decode that is late already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from common.engine.interface import Job
from common.slo import CHECK_EVERY, Objective, thinking_tokens


def terms(
    objective: Objective | None,
    *,
    tier: str,
    arrival_s: float | None,
    start: int,
    have: int,
    first_token_s: float | None,
    thinking_start: int | None = None,
    thinking_end: int | None,
    thought: int | None,
    seeded: bool = False,
    drafts: int | None = None,
) -> dict[str, Any]:
    """A promise as plain values, for :meth:`Promise.of`.

    The request's output begins at token ``start`` of the answer (0: from the first on), of which the client has
    ``have`` already; ``thought`` is how many of these the thinking took, None if it has not ended. Tokens of a
    ``seeded`` request must not depend on how it is batched, so nothing is drafted for it. ``drafts`` fixes the length
    of its drafts, for measurements.
    """
    slo = None
    if objective is not None:
        slo = (objective.arrival_s, objective.ttft_s, objective.tpot_s, objective.thinking_tpot_s)
    return {
        "slo": slo,
        "tier": tier,
        "arrival_s": arrival_s,
        "start": start,
        "have": have,
        "first_token_s": first_token_s,
        "thinking_start": thinking_start,
        "thinking_end": thinking_end,
        "thought": thought,
        "seeded": seeded,
        "drafts": drafts,
    }


def terms_of(job: Job, start: int) -> dict[str, Any]:
    """Terms of a job whose output begins at token ``start`` of the answer."""
    have, begin, end = job.generated, job.thinking_start, job.thinking_end
    return terms(
        job.objective,
        tier=job.tier,
        arrival_s=job.arrival_s,
        start=start,
        have=len(have),
        first_token_s=job.first_token_s,
        thinking_start=begin,
        thinking_end=end,
        thought=thinking_tokens(have, begin, end) if have else None,
        seeded=job.sampling.seed is not None and job.sampling.temperature > 0,
        drafts=job.drafts,
    )


@dataclass(slots=True)
class Promise:
    """One request's; ``due_s`` is infinite where nothing is promised."""

    tier: str
    arrival_s: float
    objective: Objective | None
    count: int = 0
    have: int = 0
    first_token_s: float | None = None
    thinking_start: int | None = None
    thinking_end: int | None = None
    thought: int | None = None
    seeded: bool = False
    drafts: int | None = None
    due_s: float = field(default=inf, init=False)
    tpot_s: float = field(default=inf, init=False)
    checked_in: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.objective is not None and self.have and self.first_token_s is None:
            self.first_token_s = self.objective.prefill_due_s
        self._look_ahead()

    @classmethod
    def of(cls, given: Mapping[str, Any], now_s: float, hop_s: float = 0.0) -> "Promise":
        """From :func:`terms`; the client must have every token ``hop_s`` after the engine."""
        slo, arrival_s = given.get("slo"), given.get("arrival_s")
        objective = None if slo is None else Objective(slo[0] - hop_s, *slo[1:])
        if arrival_s is None:
            arrival_s = now_s if objective is None else objective.arrival_s
        return cls(
            tier=given.get("tier", ""),
            arrival_s=arrival_s,
            objective=objective,
            count=given.get("start", 0),
            have=given.get("have", 0),
            first_token_s=given.get("first_token_s"),
            thinking_start=given.get("thinking_start"),
            thinking_end=given.get("thinking_end"),
            thought=given.get("thought"),
            seeded=given.get("seeded", False),
            drafts=given.get("drafts"),
        )

    def advance(self, tokens: Sequence[int], now_s: float) -> None:
        """The engine has these new tokens at ``now_s``."""
        before = self.count
        self.count += len(tokens)
        if self.objective is None:
            return
        if self.first_token_s is None:
            self.first_token_s = now_s
        elif self.objective.thinking_tpot_s is None and before >= self.have:
            self.due_s += self.tpot_s * len(tokens)
            self.checked_in = -(self.count + 1) % CHECK_EVERY + 1
            return
        if self.thought is None:
            self._think(before, tokens)
        self._look_ahead()

    def _think(self, before: int, tokens: Sequence[int]) -> None:
        """See :func:`common.slo.thinking_tokens`; ``before`` tokens came before these."""
        start = self.thinking_start if before == 0 else None
        thought = thinking_tokens(tokens, start, self.thinking_end)
        self.thought = before + thought if thought else thought

    def _look_ahead(self) -> None:
        if self.objective is None:
            return
        number = max(self.count, self.have) + 1
        self.checked_in = -number % CHECK_EVERY + 1
        self.tpot_s = self.objective.current_tpot_s(thinking=self.thought is None)
        if number == 1 or self.first_token_s is None:
            self.due_s = self.objective.prefill_due_s
        else:
            self.due_s = self.objective.token_due_s(number, self.first_token_s, self.thought)
