from collections.abc import Callable

import pytest

from common.settings import Settings
from common.telemetry import tracing
from tests.common.telemetry.scenario import ALL, FOREIGN, START_S, have, only, record_request
from tests.otlp_receiver import OtlpReceiver

UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


async def test_a_request_is_one_trace_with_every_parent_in_place(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    root = record_request()
    await receiver.until(have(*ALL))
    spans = {name: only(receiver, name) for name in ALL}
    parents = {name: spans[name].parent_id for name in ALL}
    assert parents == {
        "POST /generate": None,
        "send requests.chat": spans["POST /generate"].span_id,
        "admission": spans["send requests.chat"].span_id,
        "plan": None,
        "prefill": spans["admission"].span_id,
        "kv.transfer": spans["prefill"].span_id,
        "decode": spans["prefill"].span_id,
    }
    assert {spans[name].trace_id for name in ALL if name != "plan"} == {tracing.trace_id(root)}
    assert spans["admission"].links == ((spans["plan"].trace_id, spans["plan"].span_id),)
    assert receiver.problems == []


async def test_spans_carry_their_kinds_times_attributes_and_events(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    record_request()
    await receiver.until(have(*ALL))
    kinds = {name: only(receiver, name).kind for name in ALL}
    assert (kinds["POST /generate"], kinds["send requests.chat"], kinds["admission"]) == (
        "server",
        "producer",
        "consumer",
    )
    admission = only(receiver, "admission")
    assert (admission.start_s, admission.end_s) == (START_S, START_S + 0.2)
    assert admission.attributes["slo.decision"] == "admitted"
    assert admission.attributes["slo.predicted_ttft_ms"] == 310.0
    assert admission.attributes["messaging.consumer.group.name"] == "planners"
    assert "slo.retry_after_s" not in admission.attributes
    generate = only(receiver, "POST /generate").attributes
    assert (generate["gen_ai.usage.input_tokens"], generate["gen_ai.request.max_tokens"]) == (3, 16)
    assert [event.attributes["slo.position"] for event in only(receiver, "prefill").events] == [2, 3]
    decode = only(receiver, "decode")
    assert decode.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert decode.events[0].attributes == {"slo.position": 10, "slo.slack_ms": 250.0}
    assert only(receiver, "kv.transfer").attributes["slo.kv.bytes"] == 4096


async def test_no_span_holds_tokens_or_free_text(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    record_request()
    with pytest.raises(ValueError), tracing.span("broken"):
        raise ValueError("the prompt was: how do I")
    spans = await receiver.until(have(*ALL, "broken"))
    everything = repr(spans)
    for secret in ("31337", "31338", "free text", "how do I", "secret-address"):
        assert secret not in everything
    assert only(receiver, "broken").error == "ValueError"


async def test_the_resource_names_service_namespace_instance_and_version(
    traced: Callable[..., OtlpReceiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9")
    receiver = traced(service="admission")
    tracing.record_span("one", None, START_S, START_S)
    await receiver.until(have("one"))
    resource = only(receiver, "one").resource
    assert resource["service.name"] == "admission"
    assert resource["service.namespace"] == "shop"
    assert resource["service.instance.id"] == "api-1"
    assert resource["service.version"] == "9"
    assert resource["deployment.environment.name"] == "test"


async def test_the_standard_variable_renames_the_service(
    traced: Callable[..., OtlpReceiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    receiver = traced()
    tracing.record_span("one", None, START_S, START_S)
    await receiver.until(have("one"))
    assert only(receiver, "one").resource["service.name"] == "mine"


async def test_without_an_endpoint_nothing_is_recorded_and_context_passes_through() -> None:
    assert not tracing.setup_tracing(Settings(), "api", "api-1")
    with tracing.span("outer", FOREIGN) as span:
        assert not span.is_recording()
        assert tracing.inject() == FOREIGN
    assert tracing.record_span("done", {**FOREIGN, "authorization": "x"}, START_S, START_S) == FOREIGN
    assert tracing.record_span("done", None, START_S, START_S) == {}
    assert tracing.keep("0af7651916cd43dd8448eb211c80319c") == 0


async def test_a_foreign_parent_decides_on_sampling(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced(ratio=0.0)
    tracing.record_span("dropped", UNSAMPLED, START_S, START_S)
    carrier = tracing.record_span("taken", FOREIGN, START_S, START_S)
    await receiver.until(have("taken"))
    assert only(receiver, "taken").parent_id == "b7ad6b7169203331"
    assert carrier["tracestate"] == "vendor=a"
    assert receiver.named("dropped") == []


async def test_the_standard_sampler_variable_overrides_the_ratio(
    traced: Callable[..., OtlpReceiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    receiver = traced(ratio=1.0)
    dropped = tracing.record_span("dropped", None, START_S, START_S)
    tracing.flush_tracing()
    assert dropped["traceparent"].endswith(("-00", "-02"))
    assert receiver.spans == []


async def test_an_unsampled_request_that_is_kept_arrives_whole(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced(ratio=0.0)
    root = record_request()
    fine = record_request()
    tracing.flush_tracing()
    assert receiver.spans == []
    kept = tracing.trace_id(root)
    assert kept is not None
    assert tracing.keep(kept) == 6
    tracing.record_span("late", root, START_S + 3, START_S + 4)
    await receiver.until(have(*ALL, "late"))
    ours = [span for span in receiver.spans if span.name != "plan"]
    assert {span.trace_id for span in ours} == {kept}
    ids = {span.span_id for span in receiver.spans}
    assert all(span.parent_id in ids for span in ours if span.name != "POST /generate")
    assert only(receiver, "admission").links[0][1] == only(receiver, "plan").span_id
    assert tracing.trace_id(fine) not in {span.trace_id for span in receiver.spans}
    assert receiver.problems == []


@pytest.mark.parametrize("trace_id", ["", "xyz", "0" * 31, "g" * 32, "é" * 32])
async def test_a_malformed_trace_id_is_ignored(traced: Callable[..., OtlpReceiver], trace_id: str) -> None:
    traced(ratio=0.0)
    assert tracing.keep(trace_id) == 0


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "é", "ff-" + "a" * 500])
async def test_a_malformed_traceparent_starts_a_new_trace(traced: Callable[..., OtlpReceiver], header: str) -> None:
    receiver = traced()
    carrier = tracing.record_span("fresh", {"traceparent": header}, START_S, START_S)
    await receiver.until(have("fresh"))
    assert only(receiver, "fresh").parent_id is None
    assert tracing.trace_id(carrier) == only(receiver, "fresh").trace_id


async def test_an_end_before_the_start_is_recorded_as_an_instant(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    tracing.record_span("backwards", None, START_S, START_S - 5)
    await receiver.until(have("backwards"))
    assert only(receiver, "backwards").end_s == START_S


async def test_a_failure_is_a_status_with_its_code(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    tracing.record_span("decode", None, START_S, START_S, error="engine_dead")
    await receiver.until(have("decode"))
    assert only(receiver, "decode").error == "engine_dead"
    assert only(receiver, "decode").attributes["error.type"] == "engine_dead"


async def test_a_span_that_cannot_be_made_passes_its_parent_on(traced: Callable[..., OtlpReceiver]) -> None:
    traced()
    assert tracing.record_span("odd", FOREIGN, float("nan"), START_S) == FOREIGN
