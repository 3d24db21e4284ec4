"""What is to be done for a request, by whom, and what the planner expects of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.codec import Tokens, message
from common.messages.request import Request


class Stage(StrEnum):
    """What a worker does."""

    PREFILL = "prefill"
    DECODE = "decode"


class Verdict(StrEnum):
    """What the planner decided."""

    ADMITTED = "admitted"
    DEFERRED = "deferred"
    REJECTED = "rejected"


@message
@dataclass(frozen=True, slots=True)
class Decision:
    """What the planner decided for one request, why, and what it expects.

    ``ttft_ms`` is the resolved objective (absolute, also where the SLO is a slowdown); the prefill deadline
    is ``arrival_s + ttft_ms``. Predictions are None where nothing is promised. ``inputs`` are what the plan saw:
    requests that it held and that ran, workers, what it allowed for hops, prompt tokens, and how long this one waited.
    """

    verdict: Verdict
    reason: str
    cycle: int
    decided_s: float
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    thinking_tpot_ms: float | None = None
    predicted_ttft_ms: float | None = None
    predicted_tpot_ms: float | None = None
    prefill_worker: str | None = None
    decode_worker: str | None = None
    retry_after_s: float | None = None
    inputs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HandOff:
    """A prompt's KV cache in a producer's memory, readable until ``expires_s``.

    ``kv`` is the engine's own reference (vLLM: ``kv_transfer_params``); ``tokens`` is how many tokens it holds.
    """

    producer: str
    kv: Mapping[str, Any]
    tokens: int
    produced_s: float
    expires_s: float


@message
@dataclass(frozen=True, slots=True)
class Work:
    """admission -> prefill worker (``hand_off`` is None), then prefill worker -> decode worker.

    ``generated`` are the tokens that the client already has: after a re-dispatch they are part of the prompt.
    A worker that finds itself as ``decision.decode_worker`` keeps the request to its end. ``first_token_s`` is when
    the first of ``generated`` was sent, where that is known.
    """

    request: Request
    decision: Decision
    attempt: int
    generated: Tokens = ()
    hand_off: HandOff | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    first_token_s: float | None = None
