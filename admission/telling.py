"""What was decided is told to the queue while the next plan is made: an answer takes as long as a plan."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any


class Telling:
    """Tells one plan's decisions at a time, all of them at once; ``failed`` is called if the queue can't be told."""

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._answers: asyncio.Future[list[BaseException | None]] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing is being told; how the last went is known from :meth:`wait`."""
        return self._answers is None or self._answers.done()

    def begin(self, told: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Begin to tell; what was told before must have been waited for."""
        assert self._answers is None
        if told:
            self._answers = asyncio.gather(*told, return_exceptions=True)

    async def wait(self) -> None:
        """Wait until all has been told. Raises LeadershipLost and BusError, once."""
        answers, self._answers = self._answers, None
        for answer in await answers if answers is not None else ():
            if answer is not None:
                self._failed()
                raise answer

    def give_up(self) -> None:
        """Tell no more; nobody is interested in how it went."""
        answers, self._answers = self._answers, None
        if answers is not None:
            answers.cancel()
