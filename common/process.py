"""The shell of every process: settings, logs, traces, signals and the event loop around one ``main``."""

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
import textwrap
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from importlib.metadata import version
from types import FrameType
from typing import Any, NoReturn

import uvloop
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from common import beside
from common.settings import Settings, load_settings
from common.telemetry.logs import get_logger, setup_logging
from common.telemetry.tracing import setup_tracing, shutdown_tracing

Main = Callable[[Settings, asyncio.Event], Awaitable[None]]
"""Runs until the event is set (or it is done), then drains and returns."""

_BAD_SETTINGS = 2
_log = get_logger(__name__)


def run(
    service: str,
    main: Main,
    argv: Sequence[str] | None = None,
    about: str | None = None,
    reads: Collection[str] | None = None,
) -> NoReturn:
    """Run a process to its end, and leave Python with its exit code.

    The code is 0 when ``main`` returned, 1 when it raised, 2 for a wrong setting or argument. SIGTERM and SIGINT set
    the event that ``main`` gets; a second one ends the process at once. ``about`` is what ``--help`` says (default:
    the docstring of ``main`` or of its module) and ``reads`` the settings that it lists (default: all).
    """
    _parse(service, main, argv, about, reads)
    try:
        settings = load_settings()
    except ValidationError as error:
        print(explain(service, error), file=sys.stderr)
        sys.exit(_BAD_SETTINGS)
    setup_logging(settings, service)
    setup_tracing(settings, service, instance_id(service))
    settle()
    code = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(main, settings))
    except (Exception, asyncio.CancelledError):
        _log.exception("stopped by an error")
        code = 1
    finally:
        shutdown_tracing()
    if beside.running():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def settle() -> None:
    """Take what is alive by now out of garbage collection: called at the start, and when more was loaded to stay.

    A full collection of what torch and transformers bring takes half a second, in which nothing else is done.
    """
    gc.collect()
    gc.freeze()


def instance_id(service: str) -> str:
    """A name that no other process has, for telemetry."""
    return f"{service}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def explain(service: str, error: ValidationError) -> str:
    """What is wrong with the settings, a line per variable; never their values, which may be secrets."""
    lines = [f"{service}: wrong settings"]
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        lines.append(f"  {variable(str(item['loc'][0])) if item['loc'] else 'settings'}: {item['msg']}")
    return "\n".join(lines)


def variable(field: str) -> str:
    """The environment variable of a settings field."""
    return f"{Settings.model_config.get('env_prefix', '')}{field}".upper()


def settings_table(reads: Collection[str] | None = None) -> str:
    """The settings with their defaults and meanings, a line each, in the order of :class:`Settings`."""
    rows = [
        (variable(name), f"{field.description} [{_default(field)}]")
        for name, field in Settings.model_fields.items()
        if reads is None or name in reads
    ]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(
        textwrap.fill(text, 110, initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4))
        for name, text in rows
    )


def _default(field: FieldInfo) -> str:
    return "unset" if field.default is None else str(field.default)


async def _supervise(main: Main, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        loop.call_soon_threadsafe(stop.set)

    # Python's own handlers rather than the loop's: they run although the loop is blocked, by loading a model say
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        await main(settings, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _log.info("stopped", signals=[signal.Signals(number).name for number in received])


def _parse(
    service: str, main: Main, argv: Sequence[str] | None, about: str | None, reads: Collection[str] | None
) -> None:
    parser = argparse.ArgumentParser(
        prog=service,
        description=about or _about(main),
        epilog=f"settings, from environment variables:\n{settings_table(reads)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{service} {version('slos-serve')}")
    parser.parse_args(argv)


def _about(main: Any) -> str:
    module = sys.modules.get(getattr(main, "__module__", ""))
    return (main.__doc__ or (module and module.__doc__) or "").strip()
