"""Around every route: the server span, and refusals while the process drains. Plain ASGI, so that streams and
disconnects pass through untouched."""

from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem, is_openai
from common.telemetry import names, tracing

PAGES = "/pages"
"""Scripts and styles of ``/docs`` and ``/redoc``."""

UNTRACED = ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/redoc", "/favicon.ico", PAGES)
DRAIN_RETRY_S = 1.0


class ServerSpan:
    """One span per request, named by its route; its trace goes on from the caller's ``traceparent``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["path"].startswith(UNTRACED) or not tracing.enabled():
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        parent = tracing.extract(dict(Headers(scope=scope)))
        with tracing.span(method, parent, {names.HTTP_METHOD: method}, kind=SpanKind.SERVER) as span:

            async def send_noting_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute(names.HTTP_STATUS, message["status"])
                    if message["status"] >= 500:
                        tracing.mark_failed(span, str(message["status"]))
                await send(message)

            try:
                await self._app(scope, receive, send_noting_status)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.update_name(names.http_server(method, route))
                    span.set_attribute(names.HTTP_ROUTE, route)


class Drain:
    """Once :attr:`draining` is set, new work is refused and connections are asked to go elsewhere."""

    def __init__(self) -> None:
        self.draining = False

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The application behind this gate."""

        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            if not self.draining or scope["type"] != "http" or scope["path"].startswith(UNTRACED):
                await app(scope, receive, send)
                return
            problem = Problem(
                503,
                "draining",
                "This server is shutting down; others may be up.",
                retry_after_s=DRAIN_RETRY_S,
                headers={"connection": "close"},
            )
            await problem.response(is_openai(scope["path"]))(scope, receive, send)

        return gate
