"""Work that may be given up when the process ends: compiling takes up to a minute, and asyncio would wait for it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

_threads: list[threading.Thread] = []


async def run(function: Callable[[], None]) -> None:
    """Run a function in a thread of its own; raises what it raises."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error: BaseException | None = None
        try:
            function()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(end, error)

    thread = threading.Thread(target=work, name="beside", daemon=True)
    _threads.append(thread)
    thread.start()
    await done


def running() -> bool:
    """Whether any of it still runs; who leaves Python then must not let it clean up beneath it."""
    return any(thread.is_alive() for thread in _threads)
