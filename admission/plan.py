"""The planner's interface: ``plan(state, now) -> Plan``, pure, the same code in the service and the simulator."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from admission.memory import Survival
from common.latency_model import LatencyModel
from common.messages import Decision, Overload, Stage
from common.slo import Objective

ROW = struct.Struct("=15d")
"""A row of :class:`admission.request_arrays.HeldRows`."""


@dataclass(frozen=True, slots=True)
class Held:
    """A request in the window. ``need_tokens`` is what must be prefilled: prompt and already generated tokens.

    ``objective`` is None for best effort; ``deferred`` says that its sender was told so already. ``prefix_worker``
    still has the KV of the first ``prefix_tokens`` tokens (earlier rounds of the session). ``round`` counts a session's
    rounds from 0; ``missed_round`` says that one of them missed its SLO, so that this one is best effort too.
    ``first_token_s`` is when its first token came, of one that is dispatched again. ``row`` is all that a plan
    calculates with, ready to be put into an array: a request is planned many times.
    """

    id: str
    tier: str
    need_tokens: int
    max_tokens: int
    arrival_s: float
    objective: Objective | None
    value: float
    overload: Overload
    patience_s: float
    deferred: bool = False
    generated_tokens: int = 0
    session_id: str | None = None
    prefix_worker: str | None = None
    prefix_tokens: int = 0
    round: int = 0
    missed_round: bool = False
    first_token_s: float | None = None
    row: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        objective = self.objective
        row = ROW.pack(
            self.due_s,
            math.inf if objective is None else objective.tightest_tpot_s,
            math.inf if objective is None else objective.ttft_s,
            self.arrival_s,
            self.patience_s,
            self.need_tokens,
            self.generated_tokens,
            self.max_tokens,
            0 if self.prefix_worker is None else min(self.prefix_tokens, self.need_tokens - 1),
            self.value,
            self.round,
            objective is None,
            self.deferred,
            self.missed_round,
            self.overload is Overload.REJECT,
        )
        object.__setattr__(self, "row", row)

    @property
    def due_s(self) -> float:
        """When its next token is due at the client, infinite for best effort: in doubt by the tighter stage's TPOT."""
        objective = self.objective
        if objective is None:
            return math.inf
        if self.generated_tokens == 0:
            return objective.prefill_due_s
        start_s = max(objective.prefill_due_s, self.first_token_s or 0.0)
        return start_s + self.generated_tokens * objective.tightest_tpot_s


@dataclass(frozen=True, slots=True)
class Running:
    """A dispatched request that has not ended; ``dispatched_s`` is when its prefill worker got it.

    Until its first token it counts with ``todo_tokens`` prompt tokens on its prefill worker, then as a decoder on
    its decode worker. ``objective`` is None for best effort. ``generated_tokens`` and ``context_tokens`` were true at
    ``seen_s`` (0: at ``first_token_s``); ``max_tokens`` counts from dispatch, as ``dispatched_tokens`` were out then.
    """

    id: str
    tier: str
    objective: Objective | None
    prefill_worker: str
    decode_worker: str
    todo_tokens: int
    context_tokens: int
    generated_tokens: int
    max_tokens: int
    first_token_s: float | None
    dispatched_s: float = 0.0
    seen_s: float = 0.0
    dispatched_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Worker:
    """A live worker as the planner sees it; times of prediction are in ``latency``, and now ``slowdown`` times that.

    ``step_s`` is the measured pace of decoding, from which progress is extrapolated between reports (0: assume that
    every decoder is just in time). ``draft_tokens`` is how many tokens a decoder makes of an iteration in which it has
    drafts (1: without any), ``pull_s`` how long the KV of a token takes to be pulled. ``busy_until_s`` is when the
    present iteration ends; where that is unknown (0) it is estimated from ``stepped_s``, when one was last seen to end.
    """

    id: str
    prefers: Stage
    may: frozenset[Stage]
    latency: LatencyModel
    max_seqs: int
    max_batch_tokens: int
    block_size: int
    total_blocks: int
    free_blocks: int
    running: int
    fingerprint: str = ""
    step_s: float = 0.0
    draft_tokens: float = 1.0
    pull_s: float = 0.0
    busy_until_s: float = 0.0
    stepped_s: float = 0.0
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Everything that a plan may depend on; ``cycle`` counts plans.

    ``running`` is best a :class:`admission.table.RunningTable`, which keeps the arrays that a plan works on.
    ``survival`` is what is known of output lengths (None: nothing, so ``max_tokens`` is reserved).
    ``arriving`` is how many prompt tokens a second came lately of requests that want a promise.
    """

    cycle: int
    held: Sequence[Held]
    running: Sequence[Running]
    workers: Mapping[str, Worker]
    hop_s: float
    survival: Survival | None = None
    arriving: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions by request id. What is in none of the three stays held.

    ``dispatch`` are in the order in which they must be sent; ``defer`` stay held too, without a promise.
    ``wake_s`` is when to plan again at the latest, None if nothing but an event changes the plan. How many tokens are
    drafted is for engines to choose (:mod:`common.speculation`).
    """

    dispatch: Mapping[str, Decision]
    defer: Mapping[str, Decision]
    reject: Mapping[str, Decision]
    wake_s: float | None = None


class Policy(Protocol):
    """Called by the service at most every few milliseconds, on arrival, finish and worker change.

    It must not change what it is given, do I/O or read a clock. Whatever it raises is counted, and a simpler
    policy plans instead.
    """

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        """Decide on the held requests."""

    def warm_up(self) -> None:
        """Do what would make the first plan slow; may take seconds."""
