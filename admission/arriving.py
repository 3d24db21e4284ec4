"""How much work comes: prompt tokens a second, as a mean that forgets exponentially."""

import math

MEMORY_S = 10.0
"""Long enough that a clump does not pass for lasting load, short enough that a busy minute is noticed."""


class Arriving:
    """Prompt tokens a second of the requests that want a promise."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._seen_s = -math.inf

    def add(self, tokens: int, now_s: float) -> None:
        """Requests with so many prompt tokens came."""
        self._rate = self.rate(now_s) + tokens / MEMORY_S
        self._seen_s = max(self._seen_s, now_s)

    def rate(self, now_s: float) -> float:
        """Tokens a second over about the last :data:`MEMORY_S`."""
        return self._rate * math.exp(-max(0.0, now_s - self._seen_s) / MEMORY_S)
