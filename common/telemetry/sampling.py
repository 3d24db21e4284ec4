"""Sampling decided once at ingress, and a bounded memory of what was not sampled.

An SLO miss is known only when a request ends, so the spans of unsampled requests are recorded all the same and
wait, in the process that made them, for :meth:`KeepProcessor.keep` or to be forgotten.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.util.types import Attributes


class RecordUnsampled(Sampler):
    """The decision of ``inner``, but what it drops is recorded, with its attributes and without the sampled flag.

    The SDK's AlwaysRecordSampler loses the attributes, since its inner sampler has removed them.
    """

    def __init__(self, inner: Sampler) -> None:
        self._inner = inner

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See the SDK's Sampler."""
        result = self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is Decision.DROP:
            return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)
        return result

    def get_description(self) -> str:
        """See the SDK's Sampler."""
        return f"RecordUnsampled{{{self._inner.get_description()}}}"


@dataclass(slots=True)
class _Held:
    """Spans of one trace that nobody has asked for yet."""

    since_s: float
    spans: list[ReadableSpan] = field(default_factory=list)


class KeepProcessor(SpanProcessor):
    """Passes sampled spans to ``exporting`` and holds the others by trace until they are kept or forgotten.

    At most ``max_traces`` traces of at most ``max_spans`` spans are held, each for ``max_age_s`` since its first span
    ended; the oldest go first. As many kept traces are remembered, for as long. What an exported span links to is
    kept too, so that no link dangles.
    """

    def __init__(
        self,
        exporting: SpanProcessor,
        max_traces: int = 4096,
        max_age_s: float = 600.0,
        max_spans: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporting = exporting
        self._max_traces = max_traces
        self._max_age_s = max_age_s
        self._max_spans = max_spans
        self._clock = clock
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._kept_s: OrderedDict[int, float] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, trace_id: int) -> int:
        """Export what is held of a trace, and whatever of it ends later; returns how many spans were held."""
        spans = self._keep(trace_id)
        for span in spans:
            self._export(span)
        return len(spans)

    def held(self) -> int:
        """How many traces are held."""
        with self._lock:
            self._forget()
            return len(self._held)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do."""

    def on_end(self, span: ReadableSpan) -> None:
        """Export the span or hold it."""
        context = span.context
        if context is None:
            return
        if context.trace_flags.sampled or not self._hold(context.trace_id, span):
            self._export(span)

    def shutdown(self) -> None:
        """Forget what is held and shut the exporting processor down."""
        with self._lock:
            self._held.clear()
            self._kept_s.clear()
        self._exporting.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Flush the exporting processor."""
        return self._exporting.force_flush(timeout_millis)

    def _hold(self, trace_id: int, span: ReadableSpan) -> bool:
        """Hold a span; False if its trace is kept."""
        with self._lock:
            self._forget()
            if trace_id in self._kept_s:
                return False
            held = self._held.setdefault(trace_id, _Held(self._clock()))
            if len(held.spans) < self._max_spans:
                held.spans.append(span)
            return True

    def _keep(self, trace_id: int) -> list[ReadableSpan]:
        with self._lock:
            self._forget()
            self._kept_s[trace_id] = self._clock()
            self._kept_s.move_to_end(trace_id)
            held = self._held.pop(trace_id, None)
            return held.spans if held is not None else []

    def _export(self, span: ReadableSpan) -> None:
        self._exporting.on_end(_sampled(span))
        for link in span.links:
            if not link.context.trace_flags.sampled:
                for linked in self._keep(link.context.trace_id):
                    self._exporting.on_end(_sampled(linked))

    def _forget(self) -> None:
        past_s = self._clock() - self._max_age_s
        while self._held and (len(self._held) > self._max_traces or next(iter(self._held.values())).since_s < past_s):
            self._held.popitem(last=False)
        while self._kept_s and (len(self._kept_s) > self._max_traces or next(iter(self._kept_s.values())) < past_s):
            self._kept_s.popitem(last=False)


def _sampled(span: ReadableSpan) -> ReadableSpan:
    """The same span with the sampled flag, without which exporting processors drop it."""
    context = span.context
    if context is None or context.trace_flags.sampled:
        return span
    return ReadableSpan(
        name=span.name,
        context=SpanContext(
            context.trace_id,
            context.span_id,
            context.is_remote,
            TraceFlags(context.trace_flags | TraceFlags.SAMPLED),
            context.trace_state,
        ),
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
