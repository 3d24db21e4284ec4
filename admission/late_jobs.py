"""The compiled twin of :mod:`admission.planner`: the most valuable set of requests that can be promised."""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import heapq

import numpy as np

from admission.jit import compiled
from admission.lane_arrays import Bools, Floats, Ints

MOST_NODES = 1 << 15
"""States that one plan may make; past it the least promising go and the result may fall short of the optimum."""

MOST_CANDIDATES = 512
"""With more there is no room for enough states: what the dynamic program starts from is taken as it is.

On random overloads that is within 0.1 % of the optimum from 256 candidates on.
"""


@compiled
def select(work: Floats, kv: Floats, value: Floats, budget: Floats, kv_limit: float) -> Bools:
    """Who is promised, of candidates in deadline order; budgets must never fall.

    The easy ways first: everyone, then Moore-Hodgson where it is exact; they give what the dynamic program would.
    """
    count = work.shape[0]
    taken = np.ones(count, np.bool_)
    if count == 0:
        return taken
    ample = kv.sum() <= kv_limit
    if ample and _all_in_time(work, budget):
        return taken
    if ample and value.min() == value.max():
        return _most_in_time(work, budget)
    first = _greedy(work, kv, value, budget, kv_limit)
    if count > MOST_CANDIDATES:
        return first
    return _best(work, np.zeros(count) if ample else kv, value, budget, kv_limit, first)


@compiled
def greedy(work: Floats, kv: Floats, budget: Floats, kv_limit: float) -> Bools:
    """Take whoever comes in deadline order and fits."""
    taken = np.zeros(work.shape[0], np.bool_)
    total = used = 0.0
    for i in range(work.shape[0]):
        if total + work[i] <= budget[i] and used + kv[i] <= kv_limit:
            total += work[i]
            used += kv[i]
            taken[i] = True
    return taken


@compiled
def _all_in_time(work: Floats, budget: Floats) -> bool:
    total = 0.0
    for i in range(work.shape[0]):
        total += work[i]
        if total > budget[i]:
            return False
    return True


@compiled
def _most_in_time(work: Floats, budget: Floats) -> Bools:
    """Moore and Hodgson: when a deadline breaks, the largest goes."""
    taken = np.ones(work.shape[0], np.bool_)
    heap = [(0.0, -1)]
    heap.pop()
    total = 0.0
    for i in range(work.shape[0]):
        heapq.heappush(heap, (-work[i], i))
        total += work[i]
        while len(heap) > 0 and total > budget[i]:
            largest, at = heapq.heappop(heap)
            total += largest
            taken[at] = False
    return taken


@compiled
def _greedy(work: Floats, kv: Floats, value: Floats, budget: Floats, kv_limit: float) -> Bools:
    """A good feasible set to start from: the better of deadline order and throwing out what is worth least."""
    plain = greedy(work, kv, budget, kv_limit)
    taken = np.ones(work.shape[0], np.bool_)
    heap = [(0.0, -1)]
    heap.pop()
    total = used = 0.0
    for i in range(work.shape[0]):
        heapq.heappush(heap, (value[i] / max(1e-12, work[i]), i))
        total += work[i]
        used += kv[i]
        while len(heap) > 0 and (total > budget[i] or used > kv_limit):
            _, at = heapq.heappop(heap)
            total -= work[at]
            used -= kv[at]
            taken[at] = False
    total = used = 0.0  # again in one direction: what is left must hold to the last bit
    for i in range(work.shape[0]):
        if taken[i]:
            taken[i] = total + work[i] <= budget[i] and used + kv[i] <= kv_limit
        if taken[i]:
            total += work[i]
            used += kv[i]
    return taken if value[taken].sum() > value[plain].sum() else plain


@compiled
def _best(work: Floats, kv: Floats, value: Floats, budget: Floats, kv_limit: float, first: Bools) -> Bools:
    """Lawler and Moore over Pareto-optimal states; ``first`` bounds from below what is worth going on with."""
    count = work.shape[0]
    wide = max(64, MOST_NODES // count)
    parent, item = np.empty(count * wide + 1, np.int64), np.empty(count * wide + 1, np.int64)
    states, grown, merged = np.zeros((wide + 1, 3)), np.empty((wide + 1, 3)), np.empty((wide + 1, 3))
    node, grown_node = np.zeros(wide + 1, np.int64), np.zeros(wide + 1, np.int64)
    merged_node = np.zeros(wide + 1, np.int64)
    to_come = value.sum()
    bound = value[first].sum()
    have, nodes = 1, 1
    parent[0] = item[0] = -1
    for i in range(count):
        to_come -= value[i]
        more = 0
        for s in range(have):
            if states[s, 0] + work[i] <= budget[i] and states[s, 1] + kv[i] <= kv_limit:
                grown[more, 0] = states[s, 0] + work[i]
                grown[more, 1] = states[s, 1] + kv[i]
                grown[more, 2] = states[s, 2] + value[i]
                grown_node[more] = s
                more += 1
        need = bound - to_come - 1e-9
        have = _merge(states, node, have, grown, more, need, merged, merged_node, wide)
        for s in range(have):
            if merged_node[s] < 0:
                parent[nodes] = node[grown_node[-merged_node[s] - 1]]
                item[nodes] = i
                merged_node[s] = nodes
                nodes += 1
        states, merged = merged, states
        node, merged_node = merged_node, node
    return _trace(states, node, have, parent, item, first, bound)


@compiled
def _trace(states: Floats, node: Ints, have: int, parent: Ints, item: Ints, first: Bools, bound: float) -> Bools:
    best, at = bound, -1
    for s in range(have):
        if states[s, 2] > best:
            best, at = states[s, 2], node[s]
    if at < 0:
        return first
    taken = np.zeros(first.shape[0], np.bool_)
    while item[at] >= 0:
        taken[item[at]] = True
        at = parent[at]
    return taken


@compiled
def _merge(
    old: Floats, node: Ints, have: int, grown: Floats, more: int, need: float,
    out: Floats, out_node: Ints, wide: int,
) -> int:  # fmt: skip
    """Merge two lists sorted by work, dropping what is dominated or can't reach the bound; grown ones get -1-index.

    A staircase of the kept states (KV up, value up) says whether a later one, of more work, is dominated.
    """
    stair_kv, stair_value = np.empty(have + more), np.empty(have + more)
    steps, kept, a, b = 0, 0, 0, 0
    while (a < have or b < more) and kept < wide:
        from_old = b >= more or (a < have and _before(old[a], grown[b]))
        state = old[a] if from_old else grown[b]
        name = node[a] if from_old else -1 - b
        if from_old:
            a += 1
        else:
            b += 1
        if state[2] < need:
            continue
        at = np.searchsorted(stair_kv[:steps], state[1], side="right")
        if at > 0 and stair_value[at - 1] >= state[2]:
            continue
        steps = _step(stair_kv, stair_value, steps, state[1], state[2])
        out[kept] = state
        out_node[kept] = name
        kept += 1
    return kept


@compiled
def _before(left: Floats, right: Floats) -> bool:
    if left[0] != right[0]:
        return left[0] < right[0]
    if left[1] != right[1]:
        return left[1] < right[1]
    return left[2] >= right[2]


@compiled
def _step(stair_kv: Floats, stair_value: Floats, steps: int, kv: float, value: float) -> int:
    """Insert a step that is not dominated and take out those that it dominates."""
    low = int(np.searchsorted(stair_kv[:steps], kv, side="left"))
    high = low
    while high < steps and stair_value[high] <= value:
        high += 1
    if high == low:
        for i in range(steps, low, -1):
            stair_kv[i], stair_value[i] = stair_kv[i - 1], stair_value[i - 1]
        steps += 1
    elif high > low + 1:
        removed = high - low - 1
        for i in range(high, steps):
            stair_kv[i - removed], stair_value[i - removed] = stair_kv[i], stair_value[i]
        steps -= removed
    stair_kv[low], stair_value[low] = kv, value
    return steps


__all__ = ["greedy", "select"]
