"""Who decides which engine gets a request: the interface, and the routers of systems without a planner."""

from collections.abc import Sequence
from typing import Protocol

from bench.simulator.agenda import Kind
from bench.simulator.world import World


class Front(Protocol):
    """Told of everything that happens to requests and workers; sends requests to engines through the world."""

    def arrived(self, row: int, now_s: float) -> None:
        """A client has sent a request."""

    def first_token(self, row: int, worker: int, now_s: float) -> None:
        """The first token since dispatch has been computed."""

    def ended(self, row: int, worker: int, now_s: float) -> None:
        """The last token has been computed."""

    def lost(self, worker: int, rows: Sequence[int], now_s: float) -> None:
        """A worker was found dead, and these requests with it."""

    def back(self, worker: int, now_s: float) -> None:
        """A worker is up again."""


class Router:
    """Sends each request at once to one of some engines: in turn, or to that with the fewest requests."""

    def __init__(self, world: World, in_turn: bool = False) -> None:
        self._world = world
        self._in_turn = in_turn
        self._outstanding = dict.fromkeys(range(len(world.engines)), 0)
        self._next = 0

    def arrived(self, row: int, now_s: float) -> None:
        """Choose an engine and send."""
        live = sorted(self._outstanding)
        if not live:
            self._world.agenda.at(now_s + self._world.settings.report_s, Kind.ARRIVAL, lambda t: self.arrived(row, t))
            return
        if self._in_turn:
            worker = live[self._next % len(live)]
            self._next += 1
        else:
            worker = min(live, key=lambda one: (self._outstanding[one], (one - self._next) % len(self._world.engines)))
            self._next = worker + 1
        self._outstanding[worker] += 1
        self._world.send(row, worker, now_s)

    def first_token(self, row: int, worker: int, now_s: float) -> None:
        """Nothing to do."""

    def ended(self, row: int, worker: int, now_s: float) -> None:  # noqa: ARG002 (of the interface)
        """One less there."""
        if worker in self._outstanding:
            self._outstanding[worker] -= 1

    def lost(self, worker: int, rows: Sequence[int], now_s: float) -> None:
        """Send what was lost to others."""
        self._outstanding.pop(worker, None)
        for row in rows:
            self.arrived(row, now_s)

    def back(self, worker: int, now_s: float) -> None:  # noqa: ARG002 (of the interface)
        """It may be chosen again."""
        self._outstanding[worker] = 0


class SplitRouter:
    """Disaggregated serving with a static split: prompts in turn to the first engines, decodes in turn to the rest."""

    def __init__(self, world: World, prefill_workers: int) -> None:
        self._world = world
        self._live = [True] * len(world.engines)
        self._prefill = range(prefill_workers)
        self._decode = range(prefill_workers, len(world.engines))
        self._turns = {self._prefill: 0, self._decode: 0}

    def arrived(self, row: int, now_s: float) -> None:
        """To the next prefill engine."""
        worker = self._pick(self._prefill)
        if worker is None:
            self._world.agenda.at(now_s + self._world.settings.report_s, Kind.ARRIVAL, lambda t: self.arrived(row, t))
            return
        self._world.send(row, worker, now_s)

    def first_token(self, row: int, worker: int, now_s: float) -> None:
        """Its KV to the next decode engine; without one it stays."""
        target = self._pick(self._decode) if worker in self._prefill else None
        if target is not None:
            self._world.hand_over(row, worker, target, now_s)

    def ended(self, row: int, worker: int, now_s: float) -> None:
        """Nothing to do."""

    def lost(self, worker: int, rows: Sequence[int], now_s: float) -> None:
        """Prefill again what was lost."""
        self._live[worker] = False
        for row in rows:
            self.arrived(row, now_s)

    def back(self, worker: int, now_s: float) -> None:  # noqa: ARG002 (of the interface)
        """It may be chosen again."""
        self._live[worker] = True

    def _pick(self, among: range) -> int | None:
        live = [worker for worker in among if self._live[worker]]
        if not live:
            live = [worker for worker, alive in enumerate(self._live) if alive] if among is self._prefill else []
        if not live:
            return None
        self._turns[among] += 1
        return live[(self._turns[among] - 1) % len(live)]
