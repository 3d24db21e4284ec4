"""How far a request is: its tokens on their way to the client, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from common.codec import Tokens, message
from common.messages.request import Request
from common.messages.work import Decision


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


Reply = Frame | Decided
"""What an api replica receives."""


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
