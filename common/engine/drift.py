"""How much longer an engine's steps take now than its latency model says: machines change speed faster than refits.

A refit weighs hundreds of steps; other processes, clocks and hosts slow an engine down within a few. So the newest
steps scale the model as a whole, and the refit gives it its form.
"""

from collections import deque
from math import exp, isfinite, log

from common.latency_model import Batch, LatencyModel

RATE = 0.2
"""Weight of the newest step, in logarithms."""
SHARPEST = 0.5
"""Most by which one step may differ from the ones before, in logarithms: a machine stands still now and then."""
LEAST, MOST = 0.25, 8.0
KEPT = 24
"""Steps from which the factor is found anew for another model; those before weigh less than a hundredth."""
HALF_S = 5.0
"""In so long without steps half of what was seen is forgotten, or a slow moment would be believed for ever."""
_GRAIN = 0.01


class Drift:
    """``factor`` is measured over predicted seconds of the newest steps, ``latency`` the model times that."""

    def __init__(self, model: LatencyModel) -> None:
        self.model = model
        self.factor = 1.0
        self._scaled: LatencyModel | None = None
        self._log = 0.0
        self._recent: deque[tuple[Batch, float]] = deque(maxlen=KEPT)

    @property
    def latency(self) -> LatencyModel:
        """What to predict with now."""
        if self._scaled is None:
            self._scaled = self.model.scaled(self.factor)
        return self._scaled

    def use(self, model: LatencyModel) -> None:
        """Another model: what the newest steps say of it counts from now on."""
        self.model = model
        self._log = 0.0
        for batch, seconds in self._recent:
            self._follow(batch, seconds)
        self._settle()

    def observe(self, batch: Batch, seconds: float) -> None:
        """A step took so long; what can't be is left out."""
        if isfinite(seconds) and seconds > 0:
            self._recent.append((batch, seconds))
            self._follow(batch, seconds)
            self._settle()

    def rest(self, seconds: float) -> None:
        """No step ended in the last ``seconds``."""
        self._log *= 0.5 ** (seconds / HALF_S)
        if abs(self._log) < _GRAIN / 2:
            self._recent.clear()
        self._settle()

    def _follow(self, batch: Batch, seconds: float) -> None:
        predicted_s = self.model.seconds(batch)
        if isfinite(predicted_s) and predicted_s > 0:
            change = max(-SHARPEST, min(SHARPEST, log(seconds) - log(predicted_s) - self._log))
            self._log = max(log(LEAST), min(log(MOST), self._log + RATE * change))

    def _settle(self) -> None:
        self.factor = exp(_GRAIN * round(self._log / _GRAIN))
        self._scaled = None
