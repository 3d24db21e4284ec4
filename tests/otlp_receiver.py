"""A real OTLP receiver, gRPC and HTTP, that keeps spans in memory and can stand in a collector's place.

As a program it writes each span as a line of JSON::

    python -m tests.otlp_receiver --port 4317 --http-port 4318 --out spans.jsonl
"""

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import grpc  # type: ignore[import-untyped] # has no stubs
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

MAX_HTTP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event of a span."""

    name: str
    time_s: float
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it arrived; ids in hexadecimal, ``parent_id`` None for a root."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    kind: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Any]
    events: tuple[ReceivedEvent, ...]
    links: tuple[tuple[str, str], ...]
    error: str | None
    resource: Mapping[str, Any]


class OtlpReceiver:
    """Listens on free ports (or those given) from :meth:`start` to :meth:`stop`; a context manager does both.

    What a collector would refuse (ids of a wrong length, an end before its start, a nameless span) is listed in
    ``problems`` and answered with an error.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, http_port: int = 0, out: TextIO | None = None) -> None:
        self._host = host
        self._changed = threading.Condition()
        self._out = out
        self.spans: list[ReceivedSpan] = []
        self.problems: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self._grpc = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Service(self), self._grpc)
        self.port: int = self._grpc.add_insecure_port(f"{host}:{port}")
        self._http = ThreadingHTTPServer((host, http_port), _handler(self))
        self._http.daemon_threads = True
        self._http_thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self.http_port: int = self._http.server_address[1]

    @property
    def grpc_endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT with protocol grpc."""
        return f"http://{self._host}:{self.port}"

    @property
    def http_endpoint(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT with protocol http/protobuf."""
        return f"http://{self._host}:{self.http_port}"

    def start(self) -> Self:
        """Accept spans."""
        self._grpc.start()
        self._http_thread.start()
        return self

    def stop(self) -> None:
        """Close both ports."""
        self._grpc.stop(None).wait(5)
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join(5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_for(
        self, predicate: Callable[[Sequence[ReceivedSpan]], bool], timeout_s: float = 15.0
    ) -> list[ReceivedSpan]:
        """All spans once the predicate holds of them; raises TimeoutError naming what has come."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not predicate(self.spans):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise TimeoutError(f"only these spans came: {[span.name for span in self.spans]}")
            return list(self.spans)

    async def until(
        self, predicate: Callable[[Sequence[ReceivedSpan]], bool], timeout_s: float = 15.0
    ) -> list[ReceivedSpan]:
        """:meth:`wait_for` without blocking the event loop."""
        return await asyncio.to_thread(self.wait_for, predicate, timeout_s)

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of a name."""
        with self._changed:
            return [span for span in self.spans if span.name == name]

    def accept(self, request: Any, headers: Mapping[str, str]) -> bool:
        """Take an ExportTraceServiceRequest in; False if something in it is malformed."""
        spans = list(_received(request))
        problems = [problem for span in spans for problem in _problems(span)]
        with self._changed:
            self.headers.append(headers)
            self.problems += problems
            self.spans += spans
            if self._out is not None:
                self._out.writelines(json.dumps(asdict(span), default=str) + "\n" for span in spans)
                self._out.flush()
            self._changed.notify_all()
        return not problems


class _Service(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc] # not typed
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:
        if not self._receiver.accept(request, dict(context.invocation_metadata())):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed spans")
        return trace_service_pb2.ExportTraceServiceResponse()


def _handler(receiver: OtlpReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            if self.path != "/v1/traces" or length > MAX_HTTP_BYTES:
                self.send_error(404 if length <= MAX_HTTP_BYTES else 413)
                return
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(self.rfile.read(length))
            taken = receiver.accept(request, {key.lower(): value for key, value in self.headers.items()})
            body = trace_service_pb2.ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if taken else 400)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Requests are not worth a line."""

    return Handler


def _received(request: Any) -> Iterable[ReceivedSpan]:
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex() or None,
                    kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    start_s=span.start_time_unix_nano / 1e9,
                    end_s=span.end_time_unix_nano / 1e9,
                    attributes=_attributes(span.attributes),
                    events=tuple(
                        ReceivedEvent(event.name, event.time_unix_nano / 1e9, _attributes(event.attributes))
                        for event in span.events
                    ),
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    error=span.status.message if span.status.code == trace_pb2.Status.STATUS_CODE_ERROR else None,
                    resource=resource,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _problems(span: ReceivedSpan) -> Iterable[str]:
    if not span.name:
        yield f"span {span.span_id} has no name"
    if len(span.trace_id) != 32 or len(span.span_id) != 16 or len(span.parent_id or "0" * 16) != 16:
        yield f"{span.name}: an id has the wrong length"
    if not 0 < span.start_s <= span.end_s:
        yield f"{span.name}: ends before it starts"


def main() -> None:
    """Receive until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=4317, help="gRPC port")
    parser.add_argument("--http-port", type=int, default=0, help="HTTP port; 0: a free one")
    parser.add_argument("--out", type=Path, required=True, help="file that spans are appended to")
    chosen = parser.parse_args()
    with (
        chosen.out.open("a") as out,
        OtlpReceiver(chosen.host, chosen.port, chosen.http_port, out) as receiver,
    ):
        print(json.dumps({"grpc": receiver.port, "http": receiver.http_port}), flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
