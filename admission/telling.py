"""What was decided is told to the queue while the next plan is made: an answer takes as long as a plan."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any


class Telling:
    """Tells one plan's decisions at a time, all of them at once; ``failed`` is called if the queue can't be told."""

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is being told; how the last went is known from :meth:`wait`."""
        return self._task is None or self._task.done()

    def begin(self, told: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Begin to tell; what was told before must have been waited for."""
        assert self._task is None
        if told:
            self._task = asyncio.create_task(self._tell(told))

    async def wait(self) -> None:
        """Wait until all has been told. Raises LeadershipLost and BusError, once."""
        task, self._task = self._task, None
        if task is not None:
            await task

    def give_up(self) -> None:
        """Tell no more; nobody is interested in how it went."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _tell(self, told: Sequence[Coroutine[Any, Any, None]]) -> None:
        for answer in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(answer, BaseException):
                self._failed()
                raise answer
