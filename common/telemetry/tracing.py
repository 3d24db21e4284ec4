"""One trace per request, across processes.

Context travels as ``traceparent`` and ``tracestate`` in a plain mapping, a carrier, inside messages. Without an OTLP
endpoint every call here does next to nothing and passes carriers on as they came. Nothing here raises into, or
waits in, the code that calls it. The process-wide OpenTelemetry provider is left to others (engines set their own).
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, NoOpTracer, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from common.settings import Settings
from common.telemetry.exporting import exporter_from_environment
from common.telemetry.logs import get_logger
from common.telemetry.sampling import KeepProcessor, RecordUnsampled

Carrier = Mapping[str, str]
"""Trace context as it travels: ``traceparent`` and perhaps ``tracestate``; empty where there is no trace."""

Attributes = Mapping[str, AttributeValue | None]
"""Span attributes; those that are None are left out."""

Event = tuple[str, float, Attributes]
"""Name, time in seconds of the Unix epoch, attributes."""

SCOPE = "slos-serve"
_DEFAULT_DELAY_MS = 1000.0
_DEFAULT_QUEUE_SPANS = 8192
_DEFAULT_MAX_EVENTS = 1024
_MAX_VALUE_CHARACTERS = 1024

_log = get_logger(__name__)
_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class _Runtime:
    tracer: Tracer
    provider: TracerProvider | None = None
    keeper: KeepProcessor | None = None
    exporter: SpanExporter | None = None


_OFF = _Runtime(NoOpTracer())
_runtime = _OFF


def setup_tracing(settings: Settings, service: str, instance: str) -> bool:
    """Start exporting spans if the OTEL_* variables ask for it; returns whether they do.

    ``OTEL_TRACES_SAMPLER`` overrides ``settings.trace_ratio``, and ``OTEL_SERVICE_NAME`` and
    ``OTEL_RESOURCE_ATTRIBUTES`` override what is said here. A mistake in them is logged and leaves tracing off.
    """
    global _runtime
    shutdown_tracing()
    try:
        exporter = exporter_from_environment()
        if exporter is None:
            return False
        provider = TracerProvider(
            sampler=RecordUnsampled(_sampler(settings)),
            resource=_resource(settings, service, instance),
            span_limits=_limits(),
            shutdown_on_exit=False,
        )
        keeper = KeepProcessor(_batches(exporter), settings.trace_buffer_requests, settings.trace_buffer_s)
    except Exception as error:
        _log.error("tracing is off: the OTEL_* variables can't be used", error=str(error))
        return False
    provider.add_span_processor(keeper)
    _runtime = _Runtime(provider.get_tracer(SCOPE, version("slos-serve")), provider, keeper, exporter)
    return True


def shutdown_tracing(timeout_s: float = 3.0) -> None:
    """Send what is still waiting, for at most about ``timeout_s``, and stop tracing. May be called twice."""
    global _runtime
    runtime, _runtime = _runtime, _OFF
    if runtime.provider is None or runtime.exporter is None:
        return
    stopping = threading.Thread(target=runtime.provider.shutdown, name="tracing-shutdown", daemon=True)
    stopping.start()
    stopping.join(timeout_s)
    if stopping.is_alive():
        _log.warning("spans were lost at shutdown: the collector did not answer in time")
        runtime.exporter.shutdown()
        stopping.join(1.0)


def flush_tracing() -> None:
    """Send what is waiting, and return once it was sent or given up; blocks, so not for the request path."""
    if _runtime.provider is not None:
        _runtime.provider.force_flush()


def enabled() -> bool:
    """Whether spans are recorded at all, to save work on what only a span would show."""
    return _runtime.provider is not None


def tracer() -> Tracer:
    """The tracer of this process; a no-op one while tracing is off."""
    return _runtime.tracer


def keep(trace_id: str) -> int:
    """Export a trace's spans of this process although it was not sampled: those that have ended, and later ones.

    ``trace_id`` is 32 hexadecimal digits (anything else is ignored); returns how many spans had been waiting.
    """
    if _runtime.keeper is None:
        return 0
    try:
        return _runtime.keeper.keep(int(trace_id, 16)) if len(trace_id) == 32 else 0
    except ValueError:
        return 0


def inject(source: Span | Context | None = None) -> dict[str, str]:
    """The carrier of a span, of a context, or of the current span."""
    carrier: dict[str, str] = {}
    context = trace.set_span_in_context(source, Context()) if isinstance(source, Span) else source
    _propagator.inject(carrier, context)
    return carrier


def extract(carrier: Carrier) -> Context:
    """The context that a carrier (or HTTP headers) holds; an empty one if it holds none that is valid."""
    return _propagator.extract(carrier, Context())


def trace_id(carrier: Carrier) -> str | None:
    """The trace id of a carrier as 32 hexadecimal digits, None without a valid one."""
    context = trace.get_current_span(extract(carrier)).get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


@contextmanager
def span(
    name: str,
    parent: Carrier | Context | None = None,
    attributes: Attributes | None = None,
    links: Sequence[Carrier] = (),
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[Span]:
    """A span around a block, current inside of it; its parent defaults to the current span.

    An exception marks it as failed with the exception's type, never its text, which may quote a prompt.
    """
    opened = tracer().start_span(name, _context(parent), kind, present(attributes), _links(links))
    with trace.use_span(opened, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield opened
        except BaseException as error:
            mark_failed(opened, type(error).__name__)
            raise


def record_span(
    name: str,
    parent: Carrier | Context | None,
    start_s: float,
    end_s: float,
    attributes: Attributes | None = None,
    events: Sequence[Event] = (),
    links: Sequence[Carrier] = (),
    kind: SpanKind = SpanKind.INTERNAL,
    error: str | None = None,
) -> dict[str, str]:
    """Report a span after the fact; times are seconds of the Unix epoch. Returns its carrier, for children.

    Without a ``parent`` it starts a trace of its own. ``error`` (a code, never user text) marks it as failed.
    While tracing is off the parent's carrier is returned.
    """
    if not enabled():
        return _passed_on(parent)
    context = _context(parent) if parent is not None else Context()
    try:
        start_ns = int(start_s * 1e9)
        done = tracer().start_span(name, context, kind, present(attributes), _links(links), start_ns)
        for event_name, time_s, event_attributes in events:
            done.add_event(event_name, present(event_attributes), int(time_s * 1e9))
        if error is not None:
            mark_failed(done, error)
        done.end(max(start_ns, int(end_s * 1e9)))
    except Exception as failure:
        _log.warning("a span could not be recorded", span=name, error=type(failure).__name__)
        return inject(context)
    return inject(done)


def mark_failed(failed: Span, error: str) -> None:
    """Set a span's status to error, with a code or type name."""
    failed.set_status(Status(StatusCode.ERROR, error))
    failed.set_attribute("error.type", error)


def present(attributes: Attributes | None) -> dict[str, AttributeValue]:
    """The attributes that are not None."""
    return {key: value for key, value in (attributes or {}).items() if value is not None}


def _context(parent: Carrier | Context | None) -> Context | None:
    return parent if parent is None or isinstance(parent, Context) else extract(parent)


def _passed_on(parent: Carrier | Context | None) -> dict[str, str]:
    if isinstance(parent, Context):
        return inject(parent)
    return {key: parent[key] for key in _propagator.fields if key in parent} if parent else {}


def _links(carriers: Sequence[Carrier]) -> list[Link]:
    contexts = (trace.get_current_span(extract(carrier)).get_span_context() for carrier in carriers)
    return [Link(context) for context in contexts if context.is_valid]


def _sampler(settings: Settings) -> Sampler:
    if os.environ.get("OTEL_TRACES_SAMPLER", "").strip():
        # the SDK reads the variable, but only a provider without a sampler shows what it made of it
        return TracerProvider(shutdown_on_exit=False).sampler
    return ParentBased(TraceIdRatioBased(settings.trace_ratio))


def _resource(settings: Settings, service: str, instance: str) -> Resource:
    ours = {
        "service.name": service,
        "service.namespace": settings.namespace,
        "service.instance.id": instance,
        "service.version": version("slos-serve"),
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())


def _limits() -> SpanLimits:
    events = None if "OTEL_SPAN_EVENT_COUNT_LIMIT" in os.environ else _DEFAULT_MAX_EVENTS
    length = None if "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in os.environ else _MAX_VALUE_CHARACTERS
    return SpanLimits(max_events=events, max_attribute_length=length)


def _batches(exporter: SpanExporter) -> BatchSpanProcessor:
    return BatchSpanProcessor(
        exporter,
        max_queue_size=None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else _DEFAULT_QUEUE_SPANS,
        schedule_delay_millis=None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else _DEFAULT_DELAY_MS,
    )


def _forget_in_child() -> None:
    """A forked child has neither the exporter's thread nor its connection: it traces only if it sets up again."""
    global _runtime
    _runtime = _OFF


os.register_at_fork(after_in_child=_forget_in_child)
