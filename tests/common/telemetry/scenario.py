"""One request as the processes record it, and questions about what arrived."""

from collections.abc import Callable, Sequence

from opentelemetry.trace import SpanKind

from common.messages import Decision, End, HandOff, Overload, Request, Sampling, Slo, State, Verdict
from common.telemetry import names, tracing
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

START_S = 1_700_000_000.0
FOREIGN = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=a"}


def have(*wanted: str) -> Callable[[Sequence[ReceivedSpan]], bool]:
    return lambda spans: set(wanted) <= {span.name for span in spans}


def only(receiver: OtlpReceiver, name: str) -> ReceivedSpan:
    (span,) = receiver.named(name)
    return span


def make_request() -> Request:
    return Request(
        id="r1",
        tier="chat",
        tenant="t",
        arrival_s=START_S,
        prompt=(31337, 31338, 31339),
        sampling=Sampling(max_tokens=16, temperature=0.5),
        slo=Slo(None, 5.0, 100.0),
        overload=Overload.REJECT,
        value=1.0,
        patience_ms=1000.0,
    )


def make_decision() -> Decision:
    return Decision(
        Verdict.ADMITTED,
        "fits",
        cycle=7,
        decided_s=START_S + 0.2,
        ttft_ms=400.0,
        tpot_ms=100.0,
        predicted_ttft_ms=310.0,
        predicted_tpot_ms=80.0,
        prefill_worker="p1",
        decode_worker="d1",
    )


def record_request(parent: dict[str, str] | None = None) -> dict[str, str]:
    """Every span of one request, as the processes record them; returns the carrier of its root."""
    request, decision = make_request(), make_decision()
    with tracing.span(names.GENERATE, parent or {}, names.request_attributes(request, "tiny"), kind=SpanKind.SERVER):
        root = tracing.inject()
        with tracing.span(
            names.send_requests("chat"),
            attributes=names.send_attributes("requests:chat", "1-0"),
            kind=SpanKind.PRODUCER,
        ):
            sent = tracing.inject()
    cycle = tracing.record_span(names.PLAN, None, START_S + 0.19, START_S + 0.2, {names.HELD: 1})
    admitted = tracing.record_span(
        names.ADMISSION,
        sent,
        START_S,
        START_S + 0.2,
        {**names.decision_attributes(decision, 200.0), **names.process_attributes("requests:chat", "1-0")},
        links=[cycle],
        kind=SpanKind.CONSUMER,
    )
    chunks = [names.chunk_event(2, 2, START_S + 0.25), names.chunk_event(1, 3, START_S + 0.3)]
    prefilled = tracing.record_span(
        names.PREFILL, admitted, START_S + 0.2, START_S + 0.3, {names.QUEUE_WAIT_MS: 5.0}, chunks
    )
    hand_off = HandOff("p1", {"engine": "secret-address"}, 3, START_S + 0.3, START_S + 30)
    notes = {"kv_transfer_ms": 12.5, "kv_bytes": 4096.0}
    tracing.record_span(
        names.KV_TRANSFER,
        prefilled,
        START_S + 0.3,
        START_S + 0.4,
        names.transfer_attributes(hand_off, START_S + 0.31, notes),
    )
    slacks = [names.slack_event(10, START_S + 1.0, START_S + 1.25)]
    done = names.end_attributes(End(State.DONE, "stop", "free text of a user"), 16)
    tracing.record_span(names.DECODE, prefilled, START_S + 0.4, START_S + 2.0, done, slacks)
    return root


ALL = ("POST /generate", "send requests.chat", "admission", "plan", "prefill", "kv.transfer", "decode")
