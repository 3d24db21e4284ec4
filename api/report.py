"""What the api tells operators about each request: metrics and spans."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from api.delivery import Delivery
from api.intake import Prepared
from api.outcome import Outcome, outcome_of
from common.bus.interface import IngressBus
from common.errors import BusError
from common.keys import ADMISSION
from common.messages import Decision, KeepTrace, Request, State
from common.telemetry import metrics, names, tracing


@contextmanager
def sending(request: Request) -> Iterator[Mapping[str, str]]:
    """The producer span around a submission; yields the context that travels with the request."""
    attributes = {
        **names.send_attributes(f"requests.{request.tier}", request.id),
        names.REQUEST_ID: request.id,
        names.TIER: request.tier,
    }
    with tracing.span(names.send_requests(request.tier), attributes=attributes, kind=SpanKind.PRODUCER):
        yield tracing.inject()


def accepted(prepared: Prepared, model: str) -> None:
    """The current server span is this request's."""
    request = prepared.request
    _describe_span(names.request_attributes(request, model, _operation(prepared)))
    metrics.PROMPT_TOKENS.labels(request.tier).inc(len(request.prompt))


def finished(delivery: Delivery, model: str) -> Outcome:
    """Metrics, and the outcome on the current server span."""
    outcome, end, tier = outcome_of(delivery), delivery.end, delivery.prepared.request.tier
    if end is None:
        return outcome
    metrics.ENDED.labels(tier, end.state.value).inc()
    metrics.OUTPUT_TOKENS.labels(tier).inc(len(delivery.tokens))
    if outcome.attained is not None:
        metrics.ATTAINED.labels(tier, "yes" if outcome.attained else "no").inc()
    _observe_latency(tier, outcome)
    if end.state is State.DONE:
        _observe_gen_ai(outcome, _operation(delivery.prepared), model)
    _describe_span(
        {
            **(names.decision_attributes(delivery.decision) if delivery.decision else {}),
            **names.end_attributes(end, len(delivery.tokens)),
            **names.outcome_attributes(outcome.ttft_ms, outcome.tpot_ms, outcome.thinking_tpot_ms, outcome.attained),
        }
    )
    return outcome


async def keep_trace(bus: IngressBus, carrier: Mapping[str, str], decision: Decision | None) -> None:
    """Keep a request's spans everywhere although it was not sampled; for SLO misses."""
    context = trace.get_current_span(tracing.extract(carrier)).get_span_context()
    if not context.is_valid or context.trace_flags.sampled or not tracing.enabled():
        return
    trace_id = trace.format_trace_id(context.trace_id)
    tracing.keep(trace_id)
    workers = (decision.prefill_worker, decision.decode_worker) if decision else ()
    for name in dict.fromkeys((ADMISSION, *workers)):
        if name is None:
            continue
        try:
            await bus.send(name, KeepTrace(trace_id))
        except BusError:
            return


def _observe_latency(tier: str, outcome: Outcome) -> None:
    for histogram, value_ms in ((metrics.TTFT_S, outcome.ttft_ms), (metrics.TPOT_S, outcome.tpot_ms)):
        if value_ms is not None:
            histogram.labels(tier, "achieved").observe(value_ms / 1e3)


def _observe_gen_ai(outcome: Outcome, operation: str, model: str) -> None:
    for histogram, value_ms in (
        (metrics.GEN_AI_DURATION_S, outcome.total_ms),
        (metrics.GEN_AI_TTFT_S, outcome.ttft_ms),
        (metrics.GEN_AI_TPOT_S, outcome.tpot_ms),
    ):
        if value_ms is not None:
            histogram.labels(operation, model).observe(value_ms / 1e3)


def _operation(prepared: Prepared) -> str:
    return names.CHAT if prepared.chat else names.TEXT_COMPLETION


def _describe_span(attributes: tracing.Attributes) -> None:
    trace.get_current_span().set_attributes(tracing.present(attributes))
