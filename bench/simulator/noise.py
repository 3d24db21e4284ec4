"""How much longer or shorter than predicted iterations take."""

from collections.abc import Iterator

import numpy as np

_DRAWS = 4096


class Noise:
    """Lognormal factors of mean 1 with the given deviation of their logarithm."""

    def __init__(self, deviation: float, rng: np.random.Generator) -> None:
        self._deviation = deviation
        self._rng = rng
        self._drawn: Iterator[float] = iter(())

    def factor(self) -> float:
        """The next one."""
        if not self._deviation:
            return 1.0
        found = next(self._drawn, None)
        if found is None:
            spread = self._deviation * self._rng.standard_normal(_DRAWS)
            self._drawn = iter(np.exp(spread - self._deviation**2 / 2).tolist())
            found = next(self._drawn)
        return found
