import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind

from common.messages import Decision, End, HandOff, Overload, Request, Sampling, Slo, State, Verdict
from common.settings import Settings
from common.telemetry import names, tracing
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

START_S = 1_700_000_000.0
FOREIGN = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=a"}
UNSAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


@pytest.fixture(autouse=True)
def _no_tracing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield
    tracing.shutdown_tracing(timeout_s=1.0)


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def traced(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OtlpReceiver]:
    """Sets tracing up towards the receiver."""

    def start(ratio: float = 1.0, service: str = "api") -> OtlpReceiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_endpoint)
        assert tracing.setup_tracing(Settings(trace_ratio=ratio, namespace="shop"), service, "api-1")
        return receiver

    return start


def have(*wanted: str) -> Callable[[object], bool]:
    return lambda spans: set(wanted) <= {span.name for span in spans}  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_both_protocols_deliver_spans_and_headers(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=serving")
    assert tracing.setup_tracing(Settings(), "api", "api-1")
    tracing.record_span("one", None, START_S, START_S + 1)
    await receiver.until(have("one"))
    assert receiver.headers[0]["x-team"] == "serving"


async def test_what_waits_is_sent_at_shutdown(
    traced: Callable[..., OtlpReceiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    receiver = traced()
    tracing.record_span("last words", None, START_S, START_S)
    await asyncio.to_thread(tracing.shutdown_tracing)
    assert len(receiver.named("last words")) == 1
    assert not tracing.enabled()


async def test_without_an_endpoint_nothing_is_recorded_and_context_passes_through() -> None:
    assert not tracing.setup_tracing(Settings(), "api", "api-1")
    with tracing.span("outer", FOREIGN) as span:
        assert not span.is_recording()
        assert tracing.inject() == FOREIGN
    assert tracing.record_span("done", {**FOREIGN, "authorization": "x"}, START_S, START_S) == FOREIGN
    assert tracing.record_span("done", None, START_S, START_S) == {}
    assert tracing.keep("0af7651916cd43dd8448eb211c80319c") == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"),
    ],
)
async def test_variables_that_turn_tracing_off_or_are_wrong_leave_it_off(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_endpoint)
    monkeypatch.setenv(name, value)
    assert not tracing.setup_tracing(Settings(), "api", "api-1")
    assert not tracing.enabled()


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


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_is_away_costs_the_caller_nothing(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
    receiver.stop()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")
    assert tracing.setup_tracing(Settings(), "api", "api-1")
    carriers = [tracing.record_span("lost", None, START_S, START_S) for _ in range(2000)]
    assert all(tracing.trace_id(carrier) for carrier in carriers)
    tracing.shutdown_tracing(timeout_s=0.5)
    assert not tracing.enabled()


async def test_spans_arrive_once_the_collector_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver() as first:
        port = first.port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    assert tracing.setup_tracing(Settings(), "api", "api-1")
    tracing.record_span("while away", None, START_S, START_S)
    with OtlpReceiver(port=port) as second:
        await second.until(have("while away"), timeout_s=30)
        tracing.shutdown_tracing()


async def test_a_forked_child_traces_only_after_its_own_setup(traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    script = (
        "import os, sys\n"
        "from common.settings import Settings\n"
        "from common.telemetry import tracing\n"
        "assert tracing.setup_tracing(Settings(), 'parent', 'p')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(1 if tracing.enabled() else 0)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "tracing.record_span('parent', None, 1.0, 2.0)\n"
        "tracing.shutdown_tracing()\n"
        "sys.exit(code)\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(receiver.named("parent")) == 1


async def test_the_receiver_runs_as_a_program_and_writes_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "spans.jsonl"
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.otlp_receiver", "--port", "0", "--out", str(out)), stdout=subprocess.PIPE
    )
    try:
        assert program.stdout is not None
        ports = json.loads(await program.stdout.readline())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{ports['grpc']}")
        tracing.setup_tracing(Settings(), "api", "api-1")
        tracing.record_span("written", None, START_S, START_S)
        await asyncio.to_thread(tracing.shutdown_tracing)
        assert json.loads(out.read_text().splitlines()[0])["name"] == "written"
    finally:
        program.terminate()
        await program.wait()
