"""How a command ends that has started processes."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
AGAIN_S = 0.05


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

    It may come between any two steps, but for destructors, whose exceptions are ignored: there it waits for their end.
    Raises ValueError outside of the main thread.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if _in_destructor(frame):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            sys.exit(128 + received[0])

    signal.signal(signal.SIGALRM, end)
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def _in_destructor(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None
