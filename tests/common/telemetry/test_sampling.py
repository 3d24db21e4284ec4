from collections.abc import Iterator

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, Tracer, set_span_in_context

from common.telemetry.sampling import KeepProcessor, RecordUnsampled


class Recorder(SpanProcessor):
    """Where a batch processor would stand; like it, takes sampled spans only."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self.spans.append(span)

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]


class Rig:
    def __init__(self, sampler: Sampler, **bounds: float) -> None:
        self.now_s = 1000.0
        self.recorder = Recorder()
        self.keeper = KeepProcessor(self.recorder, clock=lambda: self.now_s, **bounds)  # type: ignore[arg-type]
        self.provider = TracerProvider(sampler=RecordUnsampled(sampler), shutdown_on_exit=False)
        self.provider.add_span_processor(self.keeper)
        self.tracer: Tracer = self.provider.get_tracer("tests")

    def root(self, name: str = "root", links: list[Link] | None = None) -> Span:
        span = self.tracer.start_span(name, Context(), attributes={"at": "start"}, links=links)
        assert isinstance(span, Span)
        return span


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(ParentBased(ALWAYS_OFF))
    yield made
    made.provider.shutdown()


def trace_of(span: Span) -> int:
    return span.get_span_context().trace_id


async def test_a_sampled_span_is_exported_at_once() -> None:
    rig = Rig(ParentBased(TraceIdRatioBased(1.0)))
    rig.root().end()
    assert rig.recorder.names == ["root"]
    assert rig.keeper.held() == 0


async def test_an_unsampled_span_is_not_exported_and_travels_without_the_flag(rig: Rig) -> None:
    span = rig.root()
    span.end()
    assert rig.recorder.names == []
    assert not span.get_span_context().trace_flags.sampled


async def test_a_kept_trace_is_exported_with_parents_attributes_and_flag(rig: Rig) -> None:
    root = rig.root()
    child = rig.tracer.start_span("child", set_span_in_context(root, Context()))
    child.end()
    root.end()
    assert rig.keeper.keep(trace_of(root)) == 2
    sent_child, sent_root = rig.recorder.spans
    assert (sent_child.name, sent_root.name) == ("child", "root")
    assert sent_child.parent is not None
    assert sent_root.context is not None
    assert sent_child.parent.span_id == sent_root.context.span_id
    assert sent_root.attributes == {"at": "start"}
    assert sent_root.context.trace_flags.sampled


async def test_what_ends_after_its_trace_was_kept_is_exported(rig: Rig) -> None:
    root = rig.root()
    assert rig.keeper.keep(trace_of(root)) == 0
    root.end()
    assert rig.recorder.names == ["root"]


async def test_keeping_a_trace_twice_exports_it_once(rig: Rig) -> None:
    root = rig.root()
    root.end()
    rig.keeper.keep(trace_of(root))
    rig.keeper.keep(trace_of(root))
    assert rig.recorder.names == ["root"]


async def test_keeping_one_trace_leaves_the_others_unsampled(rig: Rig) -> None:
    missed, fine = rig.root("missed"), rig.root("fine")
    missed.end()
    fine.end()
    rig.keeper.keep(trace_of(missed))
    assert rig.recorder.names == ["missed"]


async def test_the_oldest_trace_is_forgotten_first_when_too_many_are_held() -> None:
    rig = Rig(ParentBased(ALWAYS_OFF), max_traces=3)
    roots = [rig.root(f"root {number}") for number in range(5)]
    for root in roots:
        root.end()
    assert rig.keeper.held() == 3
    for root in roots:
        rig.keeper.keep(trace_of(root))
    assert rig.recorder.names == ["root 2", "root 3", "root 4"]


async def test_a_trace_is_forgotten_when_it_is_too_old() -> None:
    rig = Rig(ParentBased(ALWAYS_OFF), max_age_s=10.0)
    root = rig.root()
    root.end()
    rig.now_s += 10.5
    assert rig.keeper.held() == 0
    assert rig.keeper.keep(trace_of(root)) == 0
    assert rig.recorder.names == []


async def test_a_trace_holds_a_bounded_number_of_spans() -> None:
    rig = Rig(ParentBased(ALWAYS_OFF), max_spans=4)
    root = rig.root()
    for number in range(10):
        rig.tracer.start_span(f"child {number}", set_span_in_context(root, Context())).end()
    assert rig.keeper.keep(trace_of(root)) == 4


async def test_what_a_kept_span_links_to_is_kept_too(rig: Rig) -> None:
    plan = rig.root("plan")
    plan.end()
    admission = rig.root("admission", [Link(plan.get_span_context())])
    admission.end()
    rig.keeper.keep(trace_of(admission))
    assert sorted(rig.recorder.names) == ["admission", "plan"]


async def test_what_a_sampled_span_links_to_is_exported_although_unsampled() -> None:
    rig = Rig(ParentBased(TraceIdRatioBased(0.5)))
    plan = next(
        span for span in iter(lambda: rig.root("plan"), None) if not span.get_span_context().trace_flags.sampled
    )
    plan.end()
    admission = next(
        span
        for span in iter(lambda: rig.root("admission", [Link(plan.get_span_context())]), None)
        if span.get_span_context().trace_flags.sampled
    )
    admission.end()
    assert sorted(rig.recorder.names) == ["admission", "plan"]


async def test_the_sampler_says_what_it_wraps() -> None:
    assert RecordUnsampled(ALWAYS_OFF).get_description() == "RecordUnsampled{AlwaysOffSampler}"
