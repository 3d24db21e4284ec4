"""What clients may send. Types and constant bounds are checked here, model-dependent ones in ``intake``.

Optional fields may be null, which means their default. Unknown fields are errors: a typo in an SLO must not
silently serve without one.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from common.messages import Overload

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 128
MAX_TOKEN_ID = 2**32 - 1
MAX_SLO_MS = 1e8
INT64 = 2**63

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
Milliseconds = Annotated[float, Field(gt=0, le=MAX_SLO_MS)]


class Strict(BaseModel):
    """JSON types are taken as they are, numbers are finite, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True)


class SloBody(Strict):
    """An explicit objective: exactly one of ``ttft_ms`` and ``ttft_slowdown``, and ``tpot_ms``."""

    ttft_ms: Milliseconds | None = Field(None, description="time to first token, ms")
    ttft_slowdown: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        None, description="time to first token as a multiple of the prompt's zero-load prefill time"
    )
    tpot_ms: Milliseconds = Field(description="time per output token, ms")
    thinking_tpot_ms: Milliseconds | None = Field(None, description="time per token while the model thinks, ms")

    @model_validator(mode="after")
    def _one_ttft(self) -> "SloBody":
        if (self.ttft_ms is None) == (self.ttft_slowdown is None):
            raise ValueError("exactly one of ttft_ms and ttft_slowdown must be set")
        return self


class ThinkingBody(Strict):
    """Which tokens part a reasoning model's thinking from its answer, in place of the model's own."""

    start_token_id: TokenId | None = Field(
        None, description="only an output that begins with it thinks; unset: every output does from its first token"
    )
    end_token_id: TokenId = Field(description="from this token on the answer's TPOT counts")


class SloFields(Strict):
    """What our clients add to a request of any kind: its promise and its place in a session."""

    tier: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(None, description="a named SLO")
    slo: SloBody | None = Field(None, description="an explicit SLO in place of a tier")
    thinking: ThinkingBody | None = Field(
        None, description="tokens around the thinking stage; default: the model's, such as <think> and </think>"
    )
    session_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="rounds of one tool loop or chat share it, so that KV can be found again"
    )
    last_round: bool | None = Field(None, description="the session's last round, which people read")
    priority: Annotated[int, Field(ge=-100, le=100)] | None = Field(
        None, description="higher goes first among the tenant's own requests; default 0"
    )
    on_overload: Annotated[Overload, Field(strict=False)] | None = Field(
        None, description="reject: 429 if the SLO can't be promised; defer: serve in left-over capacity"
    )

    @model_validator(mode="after")
    def _tier_or_slo(self) -> "SloFields":
        if self.tier is not None and self.slo is not None:
            raise ValueError("tier and slo exclude each other")
        return self


class SamplingFields(Strict):
    """How tokens are drawn; vLLM's meaning of each field."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0: greedy; default 1")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)] | None = Field(None, description="0 or -1: all")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    stop: StopString | StopStrings | None = Field(None, description="text ends before the first of these")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class GenerateBody(SamplingFields, SloFields):
    """Body of ``POST /generate``: exactly one of ``prompt`` and ``prompt_token_ids``."""

    prompt: str | None = Field(None, description="text")
    prompt_token_ids: list[TokenId] | None = Field(None, description="token ids in place of text")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="default 128")
    stream: bool | None = Field(None, description="true: server-sent events")

    @model_validator(mode="after")
    def _one_prompt(self) -> "GenerateBody":
        if (self.prompt is None) == (self.prompt_token_ids is None):
            raise ValueError("exactly one of prompt and prompt_token_ids must be set")
        return self


class StreamOptions(Strict):
    """What a stream has besides text."""

    include_usage: bool | None = Field(None, description="a last chunk with token counts")
    include_obfuscation: SkipJsonSchema[bool | None] = None


class CommonOpenAI(SamplingFields, SloFields):
    """Fields of both OpenAI routes, those that are refused included, so that the refusal can say why."""

    model: Annotated[str, Field(max_length=256)] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logit_bias: dict[str, Any] | None = Field(None, description="not served")
    user: str | None = Field(None, description="ignored")
    metadata: SkipJsonSchema[dict[str, Any] | None] = None
    store: SkipJsonSchema[bool | None] = None
    service_tier: SkipJsonSchema[str | None] = None
    safety_identifier: SkipJsonSchema[str | None] = None
    prompt_cache_key: SkipJsonSchema[str | None] = None


class CompletionBody(CommonOpenAI):
    """Body of ``POST /v1/completions``."""

    prompt: str | list[Any] = Field(description="text, token ids, or a list of exactly one of either")
    best_of: int | None = Field(None, description="only 1")
    echo: bool | None = Field(None, description="not served")
    suffix: str | None = Field(None, description="not served")
    logprobs: int | None = Field(None, description="not served")


class TextPart(Strict):
    """A part of a message; only text is served."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a chat. What the official client sends back of an answer is accepted, and its empty members."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    refusal: SkipJsonSchema[None] = None
    audio: SkipJsonSchema[None] = None
    function_call: SkipJsonSchema[None] = None
    annotations: SkipJsonSchema[list[Any] | None] = Field(None, max_length=0)


class ResponseFormat(BaseModel):
    """Only ``text`` is served."""

    type: str


class TemplateOptions(Strict):
    """What a chat template may be told."""

    enable_thinking: bool | None = None


class ChatBody(CommonOpenAI):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = Field(None, description="not served")
    top_logprobs: int | None = Field(None, description="not served")
    tools: list[Any] | None = Field(None, description="not served")
    tool_choice: Any = Field(None, description="not served")
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = Field(None, description="not served")
    function_call: Any = Field(None, description="not served")
    response_format: ResponseFormat | None = Field(None, description='only {"type": "text"}')
    modalities: list[str] | None = Field(None, description='only ["text"]')
    reasoning_effort: SkipJsonSchema[str | None] = None
    chat_template_kwargs: TemplateOptions | None = None
