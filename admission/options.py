"""What can be set about the planner, with a switch for each ingredient so that its worth can be measured."""

import math
from dataclasses import dataclass
from typing import Literal

HOLD_FROM = 4
"""Workers from which a central hold pays: with fewer it costs more than choosing later gains (docs/decisions.md)."""


@dataclass(frozen=True, slots=True)
class PlannerOptions:
    """Parameters of the policy ``ours``; raises ValueError naming the field that is out of range.

    ``hold_s``: how long a promised request may wait centrally for a better worker; 0 binds at arrival. None is for ever
    from :data:`HOLD_FROM` workers on that take prompts, and 0 with fewer.
    ``lookahead_s``: a worker gets its next prompt this long before it runs dry.
    ``margin``: predicted times are stretched by this share, so that a promise survives noise.
    ``longest_batch_steps``: the longest batch that is counted on, in steps of a single token. Engines make longer ones
    (:class:`common.batching.Former`): what these save is not promised to anybody.
    ``best_effort_share``: share of token throughput that is kept for work without a promise.
    ``best_effort_wait_s``: how long that waits for a worker that has nothing else to do before it shares a busy one,
    and at most ``best_effort_wait_ttft`` times its TTFT.
    ``decode_load``: share of a worker's tokens that promised decodes may use in the long run, at costs with margins: a
    bit above 1, as what those are for evens out by then. When tokens are due, budgets see to it with margins.
    ``pack_s``: how much later a prompt may end to spare a worker the loss of its whole prompt rate to a tight decode.
    ``hand_off``: share of an idle worker's prompt rate that a hand-off must save to be worth its while.
    ``spoil_s``: how long a tight decode that its deadline keeps from a hand-off is reckoned to take prompt rate from
    its worker, when all the fleet's rate is needed; where that would cost more prompts than its own, it is deferred.
    ``stray``: a worker that does not prefer prompts gets one if it ends earlier by this share of its time there.
    ``head_start``: share of the longest wait for a batch of the receiving worker that a hand-off is planned with; with
    1 the token after it is never late, and fewer requests can be promised.
    ``draft_trust``: share of the tokens that drafts are seen to add to an iteration that is counted on.
    ``offline_lag_s``: deferred work goes before offline work that came up to this much earlier.
    ``later_round``: what each earlier round of a session adds to the value of the next, as a share of it.
    """

    hold_s: float | None = None
    lookahead_s: float = 0.01
    margin: float = 0.05
    longest_batch_steps: float = 4.0
    best_effort_share: float = 0.05
    best_effort_wait_s: float = 5.0
    best_effort_wait_ttft: float = 4.0
    decode_load: float = 1.1
    pack_s: float = 0.25
    hand_off: float = 0.15
    spoil_s: float = 0.7
    stray: float = 0.05
    head_start: float = 0.2
    draft_trust: float = 0.6
    offline_lag_s: float = 60.0
    later_round: float = 0.5
    select: Literal["dp", "greedy"] = "dp"
    central_hold: bool = True
    late_binding: bool = True
    decode_packing: bool = True
    elastic: bool = True
    deferral: bool = True
    memory: Literal["survival", "reserve"] = "survival"

    def __post_init__(self) -> None:
        shares = ("best_effort_share", "hand_off", "head_start", "draft_trust")
        for name in (
            "hold_s",
            "lookahead_s",
            "margin",
            "longest_batch_steps",
            "best_effort_wait_s",
            "best_effort_wait_ttft",
            "decode_load",
            "offline_lag_s",
            "later_round",
            "pack_s",
            "spoil_s",
            "stray",
            *shares,
        ):
            value = getattr(self, name)
            if value is None and name == "hold_s":
                continue
            if not value >= 0 or (name in shares and value > 1):
                raise ValueError(f"{name} is out of range: {value}")
        if self.best_effort_share >= 1:
            raise ValueError("best_effort_share must leave something for promises")

    def stretch(self, shared: bool) -> float:
        """How much longer than on an engine of its own promised work may take; ``shared`` with best effort."""
        return (1 + self.margin) / (1 - (self.best_effort_share if shared else 0.0))

    def bind_after_s(self, workers: int) -> float:
        """Age at which a request is bound to one of so many workers even if that is not about to be idle."""
        if not (self.central_hold and self.late_binding):
            return 0.0
        if self.hold_s is None:
            return math.inf if workers >= HOLD_FROM else 0.0
        return self.hold_s
