"""How fast a worker pulls KV, from the pulls that it has made."""

from collections import deque
from statistics import median

_NEWEST = 5
_FEWEST = 3
"""Pulls that are needed to tell a usual one from the first, which may have waited for a handshake."""
_SHARE = 0.1
_STALL = 4.0


class PullPace:
    """Seconds to pull the KV of one token: faded means of seconds and of tokens, so that long prompts weigh more.

    A pull that took more than four times what the newest ones usually take, by token, counts as four times that.
    """

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=_NEWEST)
        self._seconds = self._tokens = 0.0

    @property
    def s_per_token(self) -> float:
        """The present estimate, 0 until three pulls were seen; never negative."""
        return self._seconds / self._tokens if self._tokens else 0.0

    def observe(self, seconds: float, tokens: int) -> None:
        """A hand-off of so many tokens was pulled in so many seconds; what can't be is ignored."""
        if tokens <= 0 or not 0 <= seconds < float("inf"):
            return
        self._rates.append(seconds / tokens)
        if len(self._rates) < _FEWEST:
            return
        usual = median(self._rates)
        if not self._tokens:
            self._seconds, self._tokens = usual * tokens, float(tokens)
            return
        self._seconds += _SHARE * (min(seconds, _STALL * usual * tokens) - self._seconds)
        self._tokens += _SHARE * (tokens - self._tokens)
