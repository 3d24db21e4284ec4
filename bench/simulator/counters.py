"""What an engine tells others: what it did, and events of its requests."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is told, with the row and the time."""

    first_token: Callable[[int, float], None]
    ended: Callable[[int, float], None]


@dataclass(slots=True)
class Counters:
    """What an engine did; ``tokens`` were computed, ``emitted`` are those that clients got."""

    steps: int = 0
    polls: int = 0
    tokens: int = 0
    emitted: int = 0
    busy_s: float = 0.0
    preempted: int = 0
    pulls: int = 0
    pull_s: float = 0.0
    most_blocks: int = 0
