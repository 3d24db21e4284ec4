"""Which OTLP exporter the standard OTEL_* variables ask for, if any."""

import os
from urllib.parse import urlsplit

from opentelemetry.sdk.trace.export import SpanExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def exporter_from_environment() -> SpanExporter | None:
    """An OTLP exporter over gRPC or HTTP; None without an endpoint, or where tracing is turned off.

    The protocol defaults to gRPC, and to HTTP for an endpoint on HTTP's usual port 4318. Headers, timeouts,
    compression and certificates are read by the exporters themselves. Raises ValueError for a protocol or
    exporter that is not OTLP's.
    """
    endpoint = _first(_ENDPOINTS)
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or disabled or wanted == "none":
        return None
    if wanted not in ("", "otlp"):
        raise ValueError(f"OTEL_TRACES_EXPORTER must be otlp or none, not {wanted!r}")
    protocol = _first(_PROTOCOLS) or ("http/protobuf" if urlsplit(endpoint).port == 4318 else "grpc")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter()
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf, not {protocol!r}")


def _first(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")
