"""Names of spans, events and attributes, and the attributes of each message, so that all processes say the same.

``gen_ai.*``, ``messaging.*``, ``http.*`` and ``error.type`` are OpenTelemetry's; ``slo.*`` is our own. No prompt,
token or other text of a user is ever an attribute.
"""

from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from common.keys import PLANNERS
from common.messages import Decision, End, HandOff, Request, State, Work
from common.slo import slack_s

Attributes = dict[str, AttributeValue | None]

# spans
GENERATE = "POST /generate"
ADMISSION = "admission"
PLAN = "plan"
PREFILL = "prefill"
KV_TRANSFER = "kv.transfer"
DECODE = "decode"

# events
CHUNK = "chunk"
FIRST_TOKEN = "first_token"  # noqa: S105 - an event's name
SLACK = "slack"

# GenAI conventions
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
TEXT_COMPLETION = "text_completion"
CHAT = "chat"

# messaging, HTTP and errors
SYSTEM = "messaging.system"
DESTINATION = "messaging.destination.name"
MESSAGE_ID = "messaging.message.id"
CONSUMER_GROUP = "messaging.consumer.group.name"
MESSAGING_OPERATION = "messaging.operation.type"
HTTP_METHOD = "http.request.method"
HTTP_STATUS = "http.response.status_code"
HTTP_ROUTE = "http.route"
ERROR_TYPE = "error.type"

# our own
REQUEST_ID = "slo.request.id"
TIER = "slo.tier"
ATTEMPT = "slo.attempt"
WORKER = "slo.worker"
VERDICT = "slo.decision"
REASON = "slo.reason"
CYCLE = "slo.plan.cycle"
WAIT_MS = "slo.wait_ms"
TTFT_MS = "slo.ttft_ms"
TTFT_SLOWDOWN = "slo.ttft_slowdown"
TPOT_MS = "slo.tpot_ms"
THINKING_TPOT_MS = "slo.thinking_tpot_ms"
PREDICTED_TTFT_MS = "slo.predicted_ttft_ms"
PREDICTED_TPOT_MS = "slo.predicted_tpot_ms"
ACHIEVED_TTFT_MS = "slo.achieved_ttft_ms"
ACHIEVED_TPOT_MS = "slo.achieved_tpot_ms"
ACHIEVED_THINKING_TPOT_MS = "slo.achieved_thinking_tpot_ms"
ATTAINED = "slo.attained"
PREFILL_WORKER = "slo.prefill_worker"
DECODE_WORKER = "slo.decode_worker"
RETRY_AFTER_S = "slo.retry_after_s"
STATE = "slo.state"
END_REASON = "slo.end_reason"
QUEUE_WAIT_MS = "slo.queue_wait_ms"
KV_BYTES = "slo.kv.bytes"
KV_TOKENS = "slo.kv.tokens"
KV_PRODUCER = "slo.kv.producer"
KV_AGE_MS = "slo.kv.age_ms"
KV_TRANSFER_MS = "slo.kv.transfer_ms"
CACHED_TOKENS = "slo.cached_tokens"
RECOMPUTED = "slo.recomputed"
TOKENS = "slo.tokens"
POSITION = "slo.position"
SLACK_MS = "slo.slack_ms"
HELD = "slo.plan.held"
RUNNING = "slo.plan.running"
DISPATCHED = "slo.plan.dispatched"
DEFERRED = "slo.plan.deferred"
REJECTED = "slo.plan.rejected"
POLICY = "slo.plan.policy"
PLAN_MS = "slo.plan.ms"
INPUT = "slo.input."
"""How the names of what a decision was made from begin."""


def send_requests(tier: str) -> str:
    """Name of the producer span that puts a request into its tier's queue."""
    return f"send requests.{tier}"


def http_server(method: str, route: str) -> str:
    """Name of an HTTP server span; ``route`` is the template, never the path."""
    return f"{method} {route}"


def request_attributes(request: Request, model: str | None = None, operation: str = TEXT_COMPLETION) -> Attributes:
    """What a request asks for."""
    slo = request.slo
    return {
        OPERATION: operation,
        PROVIDER: "slos-serve",
        REQUEST_MODEL: model,
        REQUEST_MAX_TOKENS: request.sampling.max_tokens,
        REQUEST_TEMPERATURE: request.sampling.temperature,
        RESPONSE_ID: request.id,
        INPUT_TOKENS: len(request.prompt),
        REQUEST_ID: request.id,
        TIER: request.tier,
        TTFT_MS: slo.ttft_ms if slo else None,
        TTFT_SLOWDOWN: slo.ttft_slowdown if slo else None,
        TPOT_MS: slo.tpot_ms if slo else None,
        THINKING_TPOT_MS: slo.thinking_tpot_ms if slo else None,
    }


def work_attributes(work: Work, worker: str) -> Attributes:
    """What a worker's span says about its work."""
    return {
        REQUEST_ID: work.request.id,
        TIER: work.request.tier,
        ATTEMPT: work.attempt,
        WORKER: worker,
        TTFT_MS: work.decision.ttft_ms,
        TPOT_MS: work.decision.tpot_ms,
        THINKING_TPOT_MS: work.decision.thinking_tpot_ms,
    }


def decision_attributes(decision: Decision, wait_ms: float | None = None) -> Attributes:
    """What the planner decided, why, and what it expects."""
    return {
        VERDICT: decision.verdict.value,
        REASON: decision.reason,
        CYCLE: decision.cycle,
        WAIT_MS: wait_ms,
        TTFT_MS: decision.ttft_ms,
        TPOT_MS: decision.tpot_ms,
        THINKING_TPOT_MS: decision.thinking_tpot_ms,
        PREDICTED_TTFT_MS: decision.predicted_ttft_ms,
        PREDICTED_TPOT_MS: decision.predicted_tpot_ms,
        PREFILL_WORKER: decision.prefill_worker,
        DECODE_WORKER: decision.decode_worker,
        RETRY_AFTER_S: decision.retry_after_s,
        **{INPUT + name: value for name, value in decision.inputs.items()},
    }


def end_attributes(end: End, output_tokens: int) -> Attributes:
    """How a request ended; ``end.detail`` is left out, since it is free text."""
    return {
        STATE: end.state.value,
        FINISH_REASONS: (end.reason,) if end.state is State.DONE else None,
        END_REASON: end.reason,
        OUTPUT_TOKENS: output_tokens,
        ERROR_TYPE: end.reason if end.state is State.FAILED else None,
    }


def outcome_attributes(
    ttft_ms: float | None, tpot_ms: float | None, thinking_tpot_ms: float | None, attained: bool | None
) -> Attributes:
    """What was achieved, against what had been promised."""
    return {
        ACHIEVED_TTFT_MS: ttft_ms,
        ACHIEVED_TPOT_MS: tpot_ms,
        ACHIEVED_THINKING_TPOT_MS: thinking_tpot_ms,
        ATTAINED: attained,
    }


def send_attributes(stream: str, message_id: str) -> Attributes:
    """Of a producer span."""
    return {SYSTEM: "redis", MESSAGING_OPERATION: "send", DESTINATION: stream, MESSAGE_ID: message_id}


def process_attributes(stream: str, message_id: str, group: str | None = PLANNERS) -> Attributes:
    """Of a consumer span; worker streams have no consumer group."""
    return {
        SYSTEM: "redis",
        MESSAGING_OPERATION: "process",
        DESTINATION: stream,
        MESSAGE_ID: message_id,
        CONSUMER_GROUP: group,
    }


def transfer_attributes(hand_off: HandOff, started_s: float, notes: Mapping[str, float]) -> Attributes:
    """Of a KV transfer, from the hand-off and the engine's notes (``kv_transfer_ms``, ``kv_bytes``, ``recomputed``)."""
    return {
        KV_PRODUCER: hand_off.producer,
        KV_TOKENS: hand_off.tokens,
        KV_AGE_MS: (started_s - hand_off.produced_s) * 1e3,
        KV_BYTES: int(notes["kv_bytes"]) if "kv_bytes" in notes else None,
        KV_TRANSFER_MS: notes.get("kv_transfer_ms"),
        RECOMPUTED: bool(notes["recomputed"]) if "recomputed" in notes else None,
    }


def slack_event(position: int, time_s: float, due_s: float) -> tuple[str, float, Attributes]:
    """Event of a decode span: how much earlier than due a token came (negative: later)."""
    return (SLACK, time_s, {POSITION: position, SLACK_MS: slack_s(due_s, time_s) * 1e3})


def chunk_event(tokens: int, computed: int, time_s: float) -> tuple[str, float, Attributes]:
    """Event of a prefill span: a chunk of ``tokens`` ended, after which ``computed`` are done."""
    return (CHUNK, time_s, {TOKENS: tokens, POSITION: computed})
