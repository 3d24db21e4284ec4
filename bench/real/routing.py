"""Which of several replicas gets a request."""

import itertools
from collections.abc import Sequence
from typing import Literal, Protocol

Routing = Literal["round-robin", "least-loaded"]


class Router(Protocol):
    """Asked once for each request, and told when that has ended."""

    def pick(self) -> str:
        """The replica to send the next request to."""

    def done(self, replica: str) -> None:
        """A request of that replica has ended."""


class RoundRobin:
    """One after the other."""

    def __init__(self, replicas: Sequence[str]) -> None:
        self._next = itertools.cycle(replicas)

    def pick(self) -> str:
        """The one whose turn it is."""
        return next(self._next)

    def done(self, replica: str) -> None:
        """Nothing to note."""


class LeastLoaded:
    """The one with the fewest requests under way; among equals, the one that was asked least lately."""

    def __init__(self, replicas: Sequence[str]) -> None:
        self._open = dict.fromkeys(replicas, 0)

    def pick(self) -> str:
        """Count the request as under way."""
        replica = min(self._open, key=lambda name: self._open[name])
        count = self._open.pop(replica)
        self._open[replica] = count + 1
        return replica

    def done(self, replica: str) -> None:
        """Count it as ended."""
        self._open[replica] -= 1


def make_router(routing: Routing, replicas: Sequence[str]) -> Router:
    """A router by its name."""
    return RoundRobin(replicas) if routing == "round-robin" else LeastLoaded(replicas)
