"""What a front may see and do: engines, the agenda, requests, and messages that take their time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.simulator.agenda import Agenda, Kind
from bench.simulator.book import Book
from bench.simulator.engine import Engine
from bench.simulator.fate import Fate
from bench.simulator.settings import SimulationSettings
from bench.workloads.item import Item
from common.presets import Preset
from common.slo import Objective
from common.tiers import Tier


@dataclass(slots=True)
class World:
    """One run's state. ``objectives`` are set when a request arrives; ``rounds`` counts those of its session."""

    settings: SimulationSettings
    preset: Preset
    agenda: Agenda
    book: Book
    items: Sequence[Item]
    tiers: Sequence[Tier]
    objectives: list[Objective | None]
    rounds: list[int]
    missed_before: list[bool]
    fates: list[Fate]
    engines: list[Engine]
    stranded: dict[int, list[int]]
    gone: Callable[[int, float], None]

    @property
    def hop_s(self) -> float:
        """One way."""
        return self.settings.hop_s / 2

    def send(self, row: int, worker: int, now_s: float, promised: bool = True) -> None:
        """Dispatch to an engine."""
        self.book.rows["promised"][row] = promised and self.objectives[row] is not None
        self.agenda.at(now_s + self.hop_s, Kind.DELIVERY, lambda _: self._deliver(row, worker, None))

    def hand_over(self, row: int, source: int, target: int, now_s: float) -> None:
        """After its first token, a request goes on elsewhere; its KV stays until it has been pulled."""
        engine = self.engines[source]
        engine.remove(row, keep_kv=True)
        self.agenda.at(now_s + self.hop_s, Kind.DELIVERY, lambda _: self._deliver(row, target, engine))

    def refuse(self, row: int, now_s: float) -> None:
        """The request ends without (more) tokens."""
        self.gone(row, now_s)

    def _deliver(self, row: int, worker: int, producer: Engine | None) -> None:
        engine = self.engines[worker]
        if engine.alive:
            engine.add(row, producer)
            return
        if producer is not None:
            producer.pulled_away(row)
        self.stranded[worker].append(row)
