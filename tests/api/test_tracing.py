from collections.abc import Callable, Iterator

import pytest

from common.bus.interface import Claim
from common.messages import Decision, KeepTrace, State
from common.settings import Settings
from common.telemetry import tracing
from tests.api.conftest import Serve
from tests.api.pipeline import DECODE, PREFILL, decision, eventually, rejected
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "a secret prompt"
SERVER, SEND = "POST /generate", "send requests.chat"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., OtlpReceiver]]:
    """Sets tracing up towards a receiver."""
    with OtlpReceiver() as receiver:

        def start(ratio: float = 1.0) -> OtlpReceiver:
            monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_endpoint)
            assert tracing.setup_tracing(Settings(trace_ratio=ratio), "api", "api-1")
            return receiver

        yield start
        tracing.shutdown_tracing(timeout_s=1.0)


async def spans_of(receiver: OtlpReceiver, *names: str) -> list[ReceivedSpan]:
    await receiver.until(lambda spans: set(names) <= {span.name for span in spans})
    return [receiver.named(name)[0] for name in names]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_has_a_server_span_and_a_producer_span_that_travels_with_it(
    serve: Serve, traced: Callable[..., OtlpReceiver], stream: bool
) -> None:
    receiver = traced()
    async with serve() as api:
        await api.client.post("/generate", json={"prompt": SECRET, "temperature": 0.5, "stream": stream})
        server, send = await spans_of(receiver, SERVER, SEND)
        travelled = tracing.extract(api.pipeline.works[0].request.trace)
        assert tracing.inject(travelled)["traceparent"].split("-")[1:3] == [send.trace_id, send.span_id]
    assert (server.kind, server.parent_id) == ("server", None)
    assert (send.kind, send.parent_id, send.trace_id) == ("producer", server.span_id, server.trace_id)
    assert server.attributes["http.route"] == "/generate"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["gen_ai.request.temperature"] == 0.5
    assert server.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert server.attributes["slo.attained"] is True
    assert server.attributes["gen_ai.usage.output_tokens"] > 0
    assert send.attributes["messaging.system"] == "redis"
    assert SECRET not in str(receiver.spans)


async def test_a_callers_trace_goes_on(serve: Serve, traced: Callable[..., OtlpReceiver]) -> None:
    receiver = traced()
    async with serve() as api:
        await api.client.post("/generate", json={"prompt": "x"}, headers={"traceparent": CALLER})
        (server,) = await spans_of(receiver, SERVER)
    assert (server.trace_id, server.parent_id) == tuple(CALLER.split("-")[1:3])


async def test_polling_routes_are_not_traced_and_names_hold_no_ids(
    serve: Serve, traced: Callable[..., OtlpReceiver]
) -> None:
    receiver = traced()
    async with serve() as api:
        for path in ("/healthz", "/readyz", "/metrics", "/requests/req-1"):
            await api.client.get(path)
        await spans_of(receiver, "GET /requests/{request_id}")
    assert [span.name for span in receiver.spans] == ["GET /requests/{request_id}"]


async def test_a_refusal_marks_the_span_only_if_the_server_is_at_fault(
    serve: Serve, traced: Callable[..., OtlpReceiver]
) -> None:
    receiver = traced()
    async with serve(decide=rejected) as api:
        await api.client.post("/generate", json={"prompt": "x"})
        (server,) = await spans_of(receiver, SERVER)
    assert (server.attributes["http.response.status_code"], server.error) == (429, None)
    assert server.attributes["slo.decision"] == "rejected"


def too_tight(_claim: Claim) -> Decision:
    return decision(ttft_ms=1e-6, tpot_ms=1e-6)


async def test_an_slo_miss_is_kept_here_and_everywhere_although_it_was_not_sampled(
    serve: Serve, traced: Callable[..., OtlpReceiver]
) -> None:
    receiver = traced(ratio=0.0)
    async with serve(decide=too_tight) as api:
        response = await api.client.post("/generate", json={"prompt": "x"})
        assert response.json()["slo"]["attained"] is False
        server, send = await spans_of(receiver, SERVER, SEND)
        assert server.trace_id == send.trace_id
        await eventually(lambda: len(api.pipeline.kept()) == 3)
        assert sorted(api.pipeline.kept()) == [(name, server.trace_id) for name in ("admission", DECODE, PREFILL)]
        assert all(isinstance(control, KeepTrace) for _, control in api.pipeline.controls)


async def test_an_slo_that_was_met_is_forgotten_if_not_sampled(
    serve: Serve, traced: Callable[..., OtlpReceiver]
) -> None:
    receiver = traced(ratio=0.0)
    async with serve() as api:
        response = await api.client.post("/generate", json={"prompt": "x"})
        record = await api.bus.record(response.json()["request_id"])
        assert record is not None
        assert record.state is State.DONE
    tracing.flush_tracing()
    assert receiver.spans == []
    assert api.pipeline.kept() == []
