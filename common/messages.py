"""Every message that crosses a process boundary, in the order in which a request meets them.

Times are seconds of the Unix epoch (``_s``), durations carry their unit in the name. All messages are frozen
and travel through :mod:`common.codec`; the README's table says who sends what to whom.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.codec import Tokens, message
from common.latency_model import LatencyModel


class Overload(StrEnum):
    """What its sender wants when a request's SLO can't be promised."""

    REJECT = "reject"
    DEFER = "defer"


class Verdict(StrEnum):
    """What the planner decided."""

    ADMITTED = "admitted"
    DEFERRED = "deferred"
    REJECTED = "rejected"


class State(StrEnum):
    """Where a request is. The last five are ends, and a request reaches exactly one of them, once."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"

    @property
    def ended(self) -> bool:
        """Whether this is one of the five ends."""
        return self not in (State.QUEUED, State.RUNNING)


class Stage(StrEnum):
    """What a worker does."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency objective of one request.

    Exactly one of ``ttft_ms`` (absolute) and ``ttft_slowdown`` (times the zero-load prefill of the same
    prompt) is set. ``thinking_tpot_ms`` replaces ``tpot_ms`` until the end-of-thinking token.
    """

    ttft_ms: float | None
    ttft_slowdown: float | None
    tpot_ms: float
    thinking_tpot_ms: float | None = None

    def __post_init__(self) -> None:
        if (self.ttft_ms is None) == (self.ttft_slowdown is None):
            raise ValueError("exactly one of ttft_ms and ttft_slowdown must be set")
        for value in (self.ttft_ms, self.ttft_slowdown, self.tpot_ms, self.thinking_tpot_ms):
            if value is not None and not 0 < value < 1e9:
                raise ValueError("an SLO must be positive and finite")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; the meaning of each field is vLLM's ``SamplingParams``'."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: Tokens = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    @property
    def depends_on_history(self) -> bool:
        """Whether a token depends on more than the text so far: a seeded generator or penalties."""
        return (
            (self.seed is not None and self.temperature > 0)
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.repetition_penalty != 1
            or self.min_tokens > 0
        )


@message
@dataclass(frozen=True, slots=True)
class Request:
    """api -> admission: one accepted request, stored in its record; the tier's stream carries its id.

    ``thinking_start`` and ``thinking_end`` are the tokens that :func:`common.slo.thinking_tokens` parts stages by.
    """

    id: str
    tier: str
    tenant: str
    arrival_s: float
    prompt: Tokens
    sampling: Sampling
    slo: Slo | None
    overload: Overload
    value: float
    patience_ms: float
    priority: int = 0
    session_id: str | None = None
    last_round: bool = False
    thinking_start: int | None = None
    thinking_end: int | None = None
    reply_to: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)


@message
@dataclass(frozen=True, slots=True)
class Decision:
    """What the planner decided for one request, why, and what it expects.

    ``ttft_ms`` is the resolved objective (absolute, also where the SLO is a slowdown); the prefill deadline
    is ``arrival_s + ttft_ms``. Predictions are None where nothing is promised.
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


@message
@dataclass(frozen=True, slots=True)
class End:
    """How a request ended; ``reason`` is a finish reason (stop, length) or an error code (see docs)."""

    state: State
    reason: str
    detail: str = ""
    retry_after_s: float | None = None


@message
@dataclass(frozen=True, slots=True)
class Frame:
    """worker -> api: tokens ``position`` and on of a request, and its end if this is the last frame.

    ``notes`` are measurements for the record (``prefill_start_s``, ``kv_transfer_ms``, ...).
    """

    id: str
    attempt: int
    position: int
    tokens: Tokens
    time_s: float
    end: End | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


@message
@dataclass(frozen=True, slots=True)
class Decided:
    """admission -> api: the decision for a request, sent when it is dispatched, deferred or rejected."""

    id: str
    attempt: int
    decision: Decision


@message
@dataclass(frozen=True, slots=True)
class Progress:
    """worker -> admission, written together with the frame that it reports: a first token or an end."""

    id: str
    attempt: int
    worker: str
    generated: int
    ended: bool
    time_s: float


@message
@dataclass(frozen=True, slots=True)
class Cancel:
    """anyone who ends a request -> every worker that has it, and admission."""

    id: str
    attempt: int
    reason: str


@message
@dataclass(frozen=True, slots=True)
class KeepTrace:
    """api -> everyone who touched a request: its SLO was missed, keep its spans even if not sampled."""

    trace_id: str


@message
@dataclass(frozen=True, slots=True)
class Known:
    """admission -> worker: the leader plans with this worker from now on."""

    planner: str


@message
@dataclass(frozen=True, slots=True)
class WorkerState:
    """worker -> admission: registration and heartbeat in one; an id is never used by two processes.

    ``ready`` says that its engine runs, ``known`` that a leader has told it so: the pipeline serves only then.

    ``fingerprint`` names everything that must be equal for KV to be exchanged (model, engine version, block
    size, dtype). ``latency`` is the worker's present latency model, ``address`` where peers reach its KV.

    ``pull_s_per_token`` is how many seconds it was seen to take to pull the KV of a token (0: not known yet), and
    ``draft_tokens`` how many tokens a decoder was seen to make of an iteration in which it has drafts (1: without any).
    """

    id: str
    prefers: Stage
    may: tuple[Stage, ...]
    fingerprint: str
    model: str
    max_model_len: int
    block_size: int
    total_blocks: int
    free_blocks: int
    max_seqs: int
    max_batch_tokens: int
    queued: int
    queued_tokens: int
    running: int
    running_tokens: int
    step_ms: float
    latency: LatencyModel
    draining: bool
    ready: bool
    url: str
    started_s: float
    beat_s: float
    address: Mapping[str, Any] = field(default_factory=dict)
    known: bool = False
    pull_s_per_token: float = 0.0
    draft_tokens: float = 1.0


@dataclass(frozen=True, slots=True)
class StepSample:
    """One measured engine iteration: the fields of :class:`common.latency_model.Batch` and its duration."""

    tokens: int
    seqs: int
    kv_tokens: int
    attended: float
    draft_steps: int
    seconds: float


@message
@dataclass(frozen=True, slots=True)
class StepSamples:
    """worker -> calibration: measured steps since the worker's last message."""

    worker: str
    samples: tuple[StepSample, ...]


@message
@dataclass(frozen=True, slots=True)
class Profile:
    """calibration -> workers and admission: the latency model of all engines of one fingerprint.

    ``base`` is what was measured before any refit, and what unmeasured directions stay near; ``error`` is the
    median relative error of ``latency`` on the ``samples`` newest steps.
    """

    fingerprint: str
    base: LatencyModel
    latency: LatencyModel
    samples: int
    error: float
    fitted_s: float


Reply = Frame | Decided
"""What an api replica receives."""

Control = Cancel | KeepTrace | Known
"""What every process receives on its control stream."""


@dataclass(frozen=True, slots=True)
class Record:
    """The durable state of one request, as stored."""

    request: Request
    state: State
    attempt: int
    decision: Decision | None
    generated: Tokens
    end: End | None
    notes: Mapping[str, float]
    prefill_worker: str | None
    decode_worker: str | None
