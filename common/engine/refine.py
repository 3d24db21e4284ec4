"""Keeps one engine's latency model true between profiles: refits it to the newest steps, at bounded cost."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from common.engine.drift import Drift
from common.latency_fit import fit
from common.latency_model import Batch, LatencyModel
from common.messages import StepSample

RING = 256
"""Newest steps of each kind (decode only, with prefill) that a refit uses."""
REFIT_STEPS = 48
"""New steps before a refit."""
LEAST = 16
"""Steps before the first refit."""
PERIOD_S = 0.5
LEAST_REST = 100
"""Times that the last refit took pass before the next, so that all take a hundredth of a core."""


class Refiner:
    """Fits to steps near ``base``, the profile; ``tell`` gets every new model."""

    def __init__(self, base: LatencyModel, tell: Callable[[LatencyModel], None]) -> None:
        self._drift = Drift(base)
        self._base = base
        self._tell = tell
        self._rings: tuple[deque[StepSample], deque[StepSample]] = (deque(maxlen=RING), deque(maxlen=RING))
        self._fresh = 0
        self._took_s = 0.0
        tell(base)

    @property
    def latency(self) -> LatencyModel:
        """The model that fits all steps that are known."""
        return self._drift.model

    @property
    def slowdown(self) -> float:
        """How much longer than that the newest steps took."""
        return self._drift.factor

    def restart(self, base: LatencyModel) -> None:
        """A new profile: what was measured before is in it, how fast the machine is just now may not be."""
        self._base = base
        self._drift.use(base)
        self._clear()
        self._tell(base)

    def forget(self) -> None:
        """What was measured so far was not typical."""
        self._drift = Drift(self._base)
        self._clear()

    def _clear(self) -> None:
        for ring in self._rings:
            ring.clear()
        self._fresh = 0

    def add(self, sample: StepSample) -> None:
        """Note a measured step."""
        self._rings[sample.attended > 0].append(sample)
        self._fresh += 1
        batch = Batch(sample.tokens, sample.seqs, sample.kv_tokens, sample.attended, sample.draft_steps)
        self._drift.observe(batch, sample.seconds)

    async def warm_up(self) -> None:
        """Fit once to nothing that matters: what a first fit loads takes long, and holds up whatever is served."""
        samples = [StepSample(tokens, 1, tokens, tokens % 2, 0, 1e-3 * tokens) for tokens in range(1, LEAST + 1)]
        await asyncio.to_thread(_timed_fit, samples, self._base)

    async def run(self, collect: Callable[[], None]) -> None:
        """Refit now and then, in a thread of its own; ``collect`` brings new steps to :meth:`add`."""
        while True:
            rest_s, fresh = max(PERIOD_S, LEAST_REST * self._took_s), self._fresh
            await asyncio.sleep(rest_s)
            collect()
            if self._fresh == fresh:
                self._drift.rest(rest_s)
            await self.refine()

    async def refine(self) -> None:
        """Refit if enough has been measured since the last time."""
        known = sum(len(ring) for ring in self._rings)
        if known < LEAST or self._fresh < min(REFIT_STEPS, known):
            return
        self._fresh, base = 0, self._base
        model, self._took_s = await asyncio.to_thread(_timed_fit, [s for ring in self._rings for s in ring], base)
        if base is self._base:
            self._drift.use(model)
            self._tell(model)


def _timed_fit(samples: Sequence[StepSample], base: LatencyModel) -> tuple[LatencyModel, float]:
    """With the CPU seconds that it took."""
    begun_s = time.thread_time()
    return fit(samples, base), time.thread_time() - begun_s
