"""What a client asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from common.codec import Tokens, message


class Overload(StrEnum):
    """What its sender wants when a request's SLO can't be promised."""

    REJECT = "reject"
    DEFER = "defer"


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
