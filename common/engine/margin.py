"""How much of a deadline's distance batches leave free: as much as steps are seen to need."""

from math import sqrt

LEAST, MOST = 0.05, 0.25
SPREADS = 2.0
"""Margin over the root mean square of what steps took more or less than predicted, relative to the prediction."""
MEMORY_STEPS = 128


class Margin:
    """``value`` starts at :data:`MOST` and follows the newest steps, unless it is ``fixed``."""

    def __init__(self, fixed: float | None = None) -> None:
        self.value = MOST if fixed is None else fixed
        self._follows = fixed is None
        self._square = (MOST / SPREADS) ** 2

    def observe(self, predicted_s: float, took_s: float) -> None:
        """A step ended; of one that stood still no more counts than its prediction."""
        if self._follows and predicted_s > 0:
            error = min(1.0, took_s / predicted_s - 1)
            self._square += (error * error - self._square) / MEMORY_STEPS
            self.value = round(min(MOST, max(LEAST, SPREADS * sqrt(self._square))), 2)
