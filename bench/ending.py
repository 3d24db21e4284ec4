"""How a command ends that has started processes."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def run(
    main: Coroutine[Any, Any, Result], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> Result:
    """Like :func:`asyncio.run`, and SIGTERM and SIGHUP cancel as Ctrl-C does, so that contexts end what they started.

    Raises SystemExit with 128 and the signal's number then. A signal that is ignored (under ``nohup``) stays so.
    """
    received: list[int] = []

    async def until_signalled() -> Result:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                loop.add_signal_handler(number, end, number)
        return await main

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(until_signalled())
    except asyncio.CancelledError:
        if received:
            sys.exit(128 + received[0])
        raise


def exit_on_signals() -> None:
    """Make the same signals raise SystemExit, for commands that wait without a loop.

    It may come between any two steps, also where exceptions are ignored. Raises ValueError outside of the main thread.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda received, _: sys.exit(128 + received))
