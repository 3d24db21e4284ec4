"""What the held requests that can still be in time compete for: prompt work within cluster-wide budgets, and KV.

Compiled, in one call: as a dozen calls of numpy it took almost three times as long.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math
from typing import NamedTuple

import numpy as np

from admission.core import kv_of
from admission.jit import compiled
from admission.lane_arrays import Bools, Fleet, Floats, Ints, Load, may_keep
from admission.memory import HORIZONS
from admission.request_arrays import Queue
from admission.timeline import TICKS, Timeline, column_of, shared


class Contest(NamedTuple):
    """By candidate in order of deadline: work (tokens), most expected KV (tokens) and the budget of work by then."""

    work: Floats
    kv: Floats
    budget: Floats
    kv_limit: float


@compiled
def contest(
    hopeful: Ints, queue: Queue, fleet: Fleet, load: Load, takers: Bools, line: Timeline, tables: Floats, elastic: bool
) -> Contest:
    """Of the rows ``hopeful`` of the queue; prompts go to ``takers``, whose cheapest attention counts."""
    count = hopeful.shape[0]
    work, kv, budget = np.empty(count), np.empty(count), np.zeros(count)
    together = shared(line, takers)
    attention, block, kv_limit = math.inf, 0, 0.0
    for lane in range(takers.shape[0]):
        block = max(block, fleet.block[lane])
        if takers[lane]:
            attention = min(attention, fleet.attention[lane])
        if may_keep(fleet, lane, elastic):
            kv_limit += max(0.0, fleet.kv[lane] - load.kv[lane].max())
    expected = np.empty(len(HORIZONS))
    for k in range(count):
        i = hopeful[k]
        work[k] = (queue.tokens[i] - queue.cached[i]) * (1 + attention * queue.tokens[i] / 2)
        kv_of(tables[queue.table[i]], queue.tokens[i], queue.generated[i], queue.left[i], block, expected)
        kv[k] = expected.max()
        column = column_of(line, queue.due_s[i] * TICKS)
        if column >= 0:
            budget[k] = together[column]
    return Contest(work, kv, budget, kv_limit)
