"""One run: a workload on simulated engines under one system, from the first arrival until nothing is left to do."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.outcome import Outcome
from bench.simulator.agenda import Agenda, Kind
from bench.simulator.book import Book, look_ahead
from bench.simulator.counters import Listener
from bench.simulator.engine import Engine
from bench.simulator.fate import Fate
from bench.simulator.formers import Former
from bench.simulator.front import Front
from bench.simulator.objectives import objective, slos
from bench.simulator.settings import Failure, SimulationSettings
from bench.simulator.world import World
from bench.workloads.item import Item
from common.messages import Slo, Verdict
from common.presets import Preset
from common.slo import attained
from common.tiers import Tiers

MakeFormer = Callable[[int], Former]
MakeFront = Callable[[World], Front]


@dataclass(frozen=True, slots=True)
class Run:
    """Outcomes in the order of the workload, and what the engines did; ``end_s`` is when the last event was."""

    outcomes: tuple[Outcome, ...]
    end_s: float
    events: int
    steps: int
    busy_s: float
    tokens: int
    emitted: int
    preempted: int
    pulls: int
    pull_s: float
    most_blocks: int
    left: int


class Simulation:
    """See the module; the same arguments give the same run. ``promised`` are SLOs by item, in place of the tiers'."""

    def __init__(
        self,
        items: Sequence[Item],
        preset: Preset,
        tiers: Tiers,
        settings: SimulationSettings,
        make_former: MakeFormer,
        make_front: MakeFront,
        seed: int = 0,
        promised: Sequence[Slo | None] | None = None,
    ) -> None:
        self._items = items
        of_tiers = slos(items, tiers)
        self._slos = promised if promised is not None else [slo for _, slo in of_tiers]
        count = len(items)
        self.world = World(
            settings=settings,
            preset=preset,
            agenda=Agenda(),
            book=Book(items),
            items=items,
            tiers=[tier for tier, _ in of_tiers],
            objectives=[None] * count,
            rounds=[0] * count,
            missed_before=[False] * count,
            fates=[Fate() for _ in items],
            engines=[],
            stranded=defaultdict(list),
            gone=self._gone,
        )
        self.world.book.rows["tier"] = [tiers.names.index(item.tier) for item in items]
        for number in range(settings.workers):
            self.world.engines.append(self._engine(number, make_former(number), seed))
        self.front = make_front(self.world)
        self._left = count
        self._next_round = self._follow_sessions()
        for failure in settings.failures:
            self._plan_failure(failure)

    def run(self) -> Run:
        """Until every request has ended, or ``drain_s`` after the last arrival."""
        last_s = max((item.arrival_s for item in self._items), default=0.0)
        self.world.agenda.run(lambda: self._left == 0, last_s + self.world.settings.drain_s)
        counters = [engine.counters for engine in self.world.engines]
        return Run(
            outcomes=tuple(self._outcome(row) for row in range(len(self._items))),
            end_s=self.world.agenda.now_s,
            events=self.world.agenda.events,
            steps=sum(one.steps for one in counters),
            busy_s=sum(one.busy_s for one in counters),
            tokens=sum(one.tokens for one in counters),
            emitted=sum(one.emitted for one in counters),
            preempted=sum(one.preempted for one in counters),
            pulls=sum(one.pulls for one in counters),
            pull_s=sum(one.pull_s for one in counters),
            most_blocks=max(one.most_blocks for one in counters),
            left=self._left,
        )

    def _engine(self, number: int, former: Former, seed: int) -> Engine:
        listener = Listener(
            first_token=lambda row, now_s: self.front.first_token(row, number, now_s),
            ended=lambda row, now_s: self._ended(row, number, now_s),
        )
        settings, world = self.world.settings, self.world
        return Engine(
            number, world.preset, former, world.book, world.agenda, listener, world.hop_s, settings.noise, seed
        )

    # requests

    def _follow_sessions(self) -> dict[int, int]:
        """Schedule first rounds; later ones follow the round before them."""
        last: dict[str, int] = {}
        follows: dict[int, int] = {}
        for row, item in enumerate(self._items):
            before = last.get(item.session)
            if item.after_s is not None and before is not None:
                follows[before] = row
                self.world.rounds[row] = self.world.rounds[before] + 1
            else:
                self.world.agenda.at(item.arrival_s, Kind.ARRIVAL, self._arrival_of(row))
            last[item.session] = row
        return follows

    def _arrival_of(self, row: int) -> Callable[[float], None]:
        return lambda now_s: self._arrive(row, now_s)

    def _arrive(self, row: int, now_s: float) -> None:
        rows = self.world.book.rows
        promise = objective(self._slos[row], self._items[row], now_s, self.world.preset)
        self.world.objectives[row] = promise
        rows["arrival"][row] = now_s
        if promise is not None:
            rows["ttft"][row], rows["tpot"][row] = promise.ttft_s, promise.tpot_s
            if promise.thinking_tpot_s is not None:
                rows["thinking_tpot"][row] = promise.thinking_tpot_s
            rows["promised"][row] = True
        look_ahead(rows, row)
        if promise is None:
            self.world.fates[row].verdict = Verdict.DEFERRED
        self.front.arrived(row, now_s)

    def _ended(self, row: int, worker: int, now_s: float) -> None:
        self._settle(row, now_s)
        self.front.ended(row, worker, now_s)

    def _gone(self, row: int, now_s: float) -> None:
        self._settle(row, now_s)

    def _settle(self, row: int, now_s: float) -> None:
        fate = self.world.fates[row]
        assert fate.ended_s is None, "a request ended twice"
        fate.ended_s = now_s + self.world.hop_s
        self._left -= 1
        following = self._next_round.get(row)
        if following is None:
            return
        self.world.missed_before[following] = self.world.missed_before[row] or self._missed(row)
        after_s = self._items[following].after_s or 0.0
        self.world.agenda.at(now_s + self.world.hop_s + after_s, Kind.ARRIVAL, self._arrival_of(following))

    def _missed(self, row: int) -> bool:
        promise = self.world.objectives[row]
        if promise is None:
            return False
        times_s = self.world.book.token_times_s(row).tolist()
        in_time = attained(promise, times_s, self._items[row].thinking_tokens)
        return self.world.fates[row].verdict is not Verdict.ADMITTED or not in_time

    def _outcome(self, row: int) -> Outcome:
        fate, rows = self.world.fates[row], self.world.book.rows
        arrived = not math.isinf(float(rows["ttft"][row])) or self.world.objectives[row] is not None
        return Outcome(
            item=self._items[row],
            objective=self.world.objectives[row],
            verdict=fate.verdict,
            token_times_s=tuple(self.world.book.token_times_s(row).tolist()),
            arrival_s=float(rows["arrival"][row]) if arrived else self._items[row].arrival_s,
            ended_s=fate.ended_s,
            promoted=fate.promoted,
            deferred=fate.deferred,
            predicted_ttft_s=fate.predicted_ttft_s,
            predicted_tpot_s=fate.predicted_tpot_s,
        )

    # failures

    def _plan_failure(self, failure: Failure) -> None:
        world = self.world
        lost: list[int] = []

        def fail(_: float) -> None:
            lost.extend(world.engines[failure.worker].die())

        def notice(now_s: float) -> None:
            rows = [*lost, *world.stranded.pop(failure.worker, [])]
            self.front.lost(failure.worker, rows, now_s)
            if failure.back_s is not None:
                world.agenda.at(failure.back_s, Kind.FAILURE, come_back)

        def come_back(now_s: float) -> None:
            world.engines[failure.worker].revive()
            self.front.back(failure.worker, now_s)

        world.agenda.at(failure.at_s, Kind.FAILURE, fail)
        world.agenda.at(failure.at_s + world.settings.dead_s, Kind.FAILURE, notice)
