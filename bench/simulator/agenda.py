"""The heap of events. Ties are broken by kind and then by order of creation, so that runs repeat."""

import heapq
from collections.abc import Callable
from enum import IntEnum

Action = Callable[[float], None]


class Kind(IntEnum):
    """In the order in which events of one moment happen."""

    FAILURE = 0
    STEP_END = 1
    PULLED = 2
    ARRIVAL = 3
    DELIVERY = 4
    REPORT = 5
    PLAN = 6
    STEP_START = 7


class Agenda:
    """Events to come; ``now_s`` is the time of the one that is happening."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, int, Action]] = []
        self._created = 0

    def at(self, time_s: float, kind: Kind, action: Action) -> None:
        """Have something happen, never in the past."""
        self._created += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), kind, self._created, action))

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        """Let events happen until nothing is left, the condition holds, or time is up."""
        while self._heap and not until():
            time_s, _, _, action = heapq.heappop(self._heap)
            if time_s > limit_s:
                return
            self.now_s = time_s
            self.events += 1
            action(time_s)
