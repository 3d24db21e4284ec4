"""How much later first tokens come than the engines' models say: queues, processes and a busy machine, measured.

A promise that ignores this is broken by the first hop. The estimate is the median of what was seen lately: what is
late beyond that is noise of the engines, which ``plan_margin`` is for, and would defer all short prompts if it counted
as a hop. Without recent requests it is what the quickest quarter of all before had, up to :data:`MOST_USUAL_S`: a
quiet machine is not as slow as the last burst, and not as quick as the configured floor.
"""

from collections import deque

WINDOW_S = 30.0
SAMPLES = 128
QUANTILE = 0.5
PRIOR = 4
"""What is usual counts as so many samples: a few slow starts do not take everybody's promises away."""
MOST_S = 2.0
HISTORY = 256
"""Samples, however old, that what is usual is learned from, anew after each :data:`LEARN_EVERY`, and each at first."""
LEARN_EVERY = 16
QUICKEST = 0.25
MOST_USUAL_S = 0.02
"""A bound for a history of nothing but bursts, chosen by hand."""


class HopEstimate:
    """Seconds between predicted and seen first tokens; ``floor_s`` is what is always left room for."""

    def __init__(self, floor_s: float) -> None:
        self._floor_s = self._usual_s = floor_s
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._observed = 0
        self._seen: deque[tuple[float, float]] = deque(maxlen=SAMPLES)

    def observe(self, late_s: float, now_s: float) -> None:
        """A first token came ``late_s`` after the time predicted without any hop (negative: before)."""
        self._seen.append((now_s, min(MOST_S, late_s)))
        self._history.append(late_s)
        self._observed += 1
        if self._observed < LEARN_EVERY or self._observed % LEARN_EVERY == 0:
            quick_s = sorted(self._history)[int(QUICKEST * (len(self._history) - 1))]
            self._usual_s = max(self._floor_s, min(MOST_USUAL_S, quick_s))

    def seconds(self, now_s: float) -> float:
        """What a prediction must add at ``now_s``."""
        while self._seen and self._seen[0][0] < now_s - WINDOW_S:
            self._seen.popleft()
        ordered = sorted([self._usual_s] * PRIOR + [late_s for _, late_s in self._seen])
        return max(self._floor_s, ordered[int(QUANTILE * (len(ordered) - 1))])
