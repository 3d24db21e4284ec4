"""Structured logs of this project and of its libraries, through one handler, JSON or console, without secrets."""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog
from opentelemetry import trace

from common.settings import Settings
from common.telemetry.redaction import redact, redact_text

Event = MutableMapping[str, Any]

_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "vllm", "nixl", "py.warnings")
_CHATTY = ("httpx", "httpcore", "urllib3", "asyncio", "uvicorn.access", "hpack", "filelock")
_SPARING_S = 60.0
_SPARING_MESSAGES = 100
_VERBATIM = frozenset(("event", "exception", "stack"))
_UNTOUCHED = frozenset(("timestamp", "level", "logger", "service", "trace_id", "span_id", "_record", "_from_structlog"))


def setup_logging(settings: Settings, service: str) -> None:
    """Send all logs of this process to standard error; calling it again replaces what it did before."""
    # vLLM installs a handler of its own when it is imported, unless this is set
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    shared = _shared_processors(service)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = _Handler()
    handler.addFilter(_Sparing())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(settings)],
        )
    )
    root = logging.getLogger()
    root.handlers = [*(other for other in root.handlers if not isinstance(other, _Handler)), handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    _route_libraries(settings)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; call it as ``log.info("what happened", key=value)``, never with prompts or tokens."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def redact_event(_logger: Any, _method: str, event: Event) -> Event:
    """Processor: passes a log entry on without secrets and content, whatever it was called with."""
    event.pop("color_message", None)  # uvicorn's second copy of its message
    for key, value in event.items():
        if key in _VERBATIM:
            event[key] = redact_text(str(value))
        elif key not in _UNTOUCHED:
            event[key] = redact(key, value)
    return event


class _Handler(logging.StreamHandler[Any]):
    """Standard error, looked up at each entry so that a redirection is followed."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _stream: Any) -> None:
        """StreamHandler's constructor sets what is looked up here."""


class _Sparing(logging.Filter):
    """Lets a message of the tracing libraries through once a minute: a collector that is away makes many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._last_s: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("opentelemetry"):
            return True
        now_s, key = self._clock(), (record.name, str(record.msg))
        if now_s - self._last_s.get(key, -math.inf) < _SPARING_S:
            return False
        if len(self._last_s) >= _SPARING_MESSAGES:
            self._last_s.clear()
        self._last_s[key] = now_s
        return True


def _shared_processors(service: str) -> list[structlog.typing.Processor]:
    def add_service(_logger: Any, _method: str, event: Event) -> Event:
        event.setdefault("service", service)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        _add_trace,
        structlog.processors.StackInfoRenderer(),
        # plain tracebacks: richer ones print local variables, and those hold prompts
        structlog.processors.format_exc_info,
        # last, and before the entry leaves structlog: other handlers of the root logger must not see more
        redact_event,
    ]


def _add_trace(_logger: Any, _method: str, event: Event) -> Event:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _renderer(settings: Settings) -> structlog.typing.Processor:
    if settings.log_format == "json":
        return structlog.processors.JSONRenderer(default=str)
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _route_libraries(settings: Settings) -> None:
    for name in _OWN_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    quiet = logging.WARNING if settings.log_level != "debug" else logging.DEBUG
    for name in _CHATTY:
        logging.getLogger(name).setLevel(quiet)
