import os
from collections.abc import Callable, Iterator

import pytest

from common.settings import Settings
from common.telemetry import tracing
from tests.otlp_receiver import OtlpReceiver


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
