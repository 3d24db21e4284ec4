"""Which requests to promise: the set of most value whose prompts all fit by their deadlines.

Candidates are walked in order of their deadlines. A set is feasible if at each member's deadline the work of all
members so far fits the budget by then, and if its KV fits. That is the weighted number of late jobs on one machine:
Lawler and Moore's dynamic program, here over states (work, KV, value) of which only the Pareto-optimal are kept.
This module has the plain twin; :mod:`admission.late_jobs` computes the same, compiled.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that could be promised: work in tokens, most KV that it is expected to hold, and what it is worth."""

    work: float
    kv: float
    value: float


@dataclass(frozen=True, slots=True)
class _State:
    work: float
    kv: float
    value: float
    chosen: tuple[int, ...]

    def dominates(self, other: "_State") -> bool:
        return self.work <= other.work and self.kv <= other.kv and self.value >= other.value


def feasible(candidates: Sequence[Candidate], budget: Sequence[float], kv: float, chosen: Sequence[int]) -> bool:
    """Whether these candidates, by index in deadline order, keep all deadlines and fit the KV."""
    work = 0.0
    for i in sorted(chosen):
        work += candidates[i].work
        if work > budget[i]:
            return False
    return sum(candidates[i].kv for i in chosen) <= kv


def best_set(candidates: Sequence[Candidate], budget: Sequence[float], kv: float) -> tuple[int, ...]:
    """Indices of a feasible set of the most value; ``budget[i]`` is what may be done by candidate i's deadline."""
    states = [_State(0.0, 0.0, 0.0, ())]
    for i, one in enumerate(candidates):
        grown = [
            _State(state.work + one.work, state.kv + one.kv, state.value + one.value, (*state.chosen, i))
            for state in states
            if state.work + one.work <= budget[i] and state.kv + one.kv <= kv
        ]
        states = _pareto(states + grown)
    return max(states, key=lambda state: state.value).chosen


def _pareto(states: list[_State]) -> list[_State]:
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: (state.work, state.kv, -state.value)):
        if not any(other.dominates(state) for other in kept):
            kept.append(state)
    return kept


def most_in_time(candidates: Sequence[Candidate], budget: Sequence[float]) -> tuple[int, ...]:
    """Moore and Hodgson: as :func:`best_set` where values are equal, KV is ample and budgets never fall."""
    work, taken = 0.0, list[tuple[float, int]]()
    for i, one in enumerate(candidates):
        heapq.heappush(taken, (-one.work, i))
        work += one.work
        while taken and work > budget[i]:
            work += heapq.heappop(taken)[0]
    return tuple(sorted(i for _, i in taken))


def greedy_set(candidates: Sequence[Candidate], budget: Sequence[float], kv: float) -> tuple[int, ...]:
    """Take whoever comes in deadline order and fits: what a planner without lookahead does."""
    work = used = 0.0
    taken = []
    for i, one in enumerate(candidates):
        if work + one.work <= budget[i] and used + one.kv <= kv:
            work, used = work + one.work, used + one.kv
            taken.append(i)
    return tuple(taken)


def brute_force(candidates: Sequence[Candidate], budget: Sequence[float], kv: float) -> float:
    """The most value of any feasible set, by trying all of them: what the others are held to."""
    indices = range(len(candidates))
    sets = (chosen for count in range(len(candidates) + 1) for chosen in combinations(indices, count))
    return max(sum(candidates[i].value for i in chosen) for chosen in sets if feasible(candidates, budget, kv, chosen))
