"""What drafting is seen to cost on this engine, which the latency model's one coefficient for it can't say.

A draft step costs more the more sequences draft, and a wrong figure makes speculation slower than none. So decode
steps are compared with what the model predicts for them, by longest draft and number of sequences.
"""

from math import log

import numpy as np

from common.batching_table import Floats

RATE = 0.1
"""Weight of a new measurement once there are many."""
SHARPEST = 0.3
"""Most by which one measurement may differ, in logarithms: steps are disturbed now and then."""
FEW = 4
WIDEST = 1.5
_SIZES = 16


class DraftCosts:
    """Measured over predicted seconds for drafts of 0 to ``most`` tokens."""

    def __init__(self, most: int) -> None:
        self._log = np.zeros((_SIZES, most + 1))
        self._seen = np.zeros((_SIZES, most + 1), np.int64)

    def observe(self, seqs: int, drafts: int, measured_s: float, predicted_s: float) -> None:
        """A step of ``seqs`` decodes, the longest draft of which had so many tokens."""
        if not (measured_s > 0 and predicted_s > 0 and 0 <= drafts < self._log.shape[1]):
            return
        at = _size(seqs), drafts
        count = int(self._seen[at])
        change = float(np.clip(log(measured_s / predicted_s), -WIDEST, WIDEST)) - self._log[at]
        if count >= FEW:
            change = float(np.clip(change, -SHARPEST, SHARPEST))
        self._log[at] += max(RATE, 1 / (count + 1)) * change
        self._seen[at] += 1

    def factors(self, seqs: int) -> Floats:
        """By longest draft; where nothing was measured, between its neighbours, or as for the next number of seqs."""
        measured = np.flatnonzero(self._seen.any(axis=1))
        lengths = np.arange(self._log.shape[1])
        if not len(measured):
            return np.ones(len(lengths))
        known = self._seen[measured].astype(bool).sum(axis=1)
        distance = np.abs(measured - _size(seqs)) + np.where(known > 1, 0, _SIZES)
        row = measured[np.argmin(distance)]
        seen = np.flatnonzero(self._seen[row])
        return np.asarray(np.exp(np.interp(lengths, seen, self._log[row, seen])))


def _size(seqs: int) -> int:
    return min(_SIZES - 1, int(seqs).bit_length())
