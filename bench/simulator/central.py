"""The product's planner in the simulation: a window of held requests, plans on events, decisions sent to engines."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from admission.arriving import Arriving
from admission.memory import SurvivalLearner
from admission.plan import ClusterState, Held, Policy, Running, Worker
from admission.table import RunningTable
from bench.simulator.agenda import Kind
from bench.simulator.world import World
from common.messages import Decision, Stage, Verdict

BOTH = frozenset(Stage)


class CentralPlanner:
    """A front around any :class:`admission.plan.Policy`.

    ``history`` are outputs (tier, tokens) that were seen before the run; ``most_tokens`` is what clients of each tier
    ask for at most, which is all that the planner knows of a request's output; None is an oracle that knows each.
    """

    def __init__(
        self,
        world: World,
        policy: Policy,
        most_tokens: Mapping[str, int] | None,
        history: Iterable[tuple[str, int]] = (),
    ) -> None:
        self.plans = 0
        self.planning_s = 0.0
        self._world = world
        self._policy = policy
        self._most_tokens = most_tokens
        self._held: dict[str, Held] = {}
        self._queue: deque[Held] = deque()
        self._table = RunningTable()
        self._decisions: dict[int, Decision] = {}
        self._dead: set[int] = set()
        self._stepped_s = [0.0] * len(world.engines)
        self._names = [f"w{number}" for number in range(len(world.engines))]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._workers = {number: self._worker(number) for number in range(len(world.engines))}
        self._learner = SurvivalLearner()
        self._arriving = Arriving()
        for tier, tokens in history:
            self._learner.observe(tier, tokens)
        self._next_plan_s: float | None = None
        self._last_plan_s = float("-inf")
        for number in range(len(world.engines)):
            self._report_at(number, world.settings.report_s * (number + 1) / len(world.engines))

    # what happens

    def arrived(self, row: int, now_s: float) -> None:
        """Hold it, and plan."""
        held = self._hold(row)
        if held.objective is not None:
            self._arriving.add(held.need_tokens, now_s)
        self._queue.append(held)
        self._soon(now_s)

    def first_token(self, row: int, worker: int, now_s: float) -> None:
        """It decodes from now on, here or elsewhere."""
        self._stepped_s[worker] = now_s
        decode = self._numbers[self._decisions[row].decode_worker or ""]
        self._update(row, now_s)
        if decode != worker:
            self._world.hand_over(row, worker, decode, now_s)
        self._soon(now_s)

    def ended(self, row: int, worker: int, now_s: float) -> None:
        """Learn its length, and plan with what it leaves."""
        self._stepped_s[worker] = now_s
        self._table.remove(self._world.book.names[row])
        self._learner.observe(self._world.items[row].tier, int(self._world.book.rows["count"][row]))
        self._soon(now_s)

    def lost(self, worker: int, rows: Sequence[int], now_s: float) -> None:
        """Hold again what was lost, with what the clients have as part of the prompt."""
        self._dead.add(worker)
        for row in rows:
            self._table.remove(self._world.book.names[row])
            self._queue.append(self._hold(row))
        self._soon(now_s)

    def back(self, worker: int, now_s: float) -> None:
        """It may get work again."""
        self._dead.discard(worker)
        self._soon(now_s)

    # what the planner sees

    def _hold(self, row: int) -> Held:
        world, tier = self._world, self._world.tiers[row]
        item, made = world.items[row], int(world.book.rows["count"][row])
        most = item.output_tokens if self._most_tokens is None else self._most_tokens[item.tier]
        return Held(
            id=world.book.names[row],
            tier=item.tier,
            need_tokens=world.book.known(row),
            max_tokens=max(1, most - made),
            arrival_s=float(world.book.rows["arrival"][row]),
            objective=world.objectives[row],
            value=tier.value,
            overload=tier.on_overload,
            patience_s=tier.patience_s,
            deferred=world.fates[row].verdict is Verdict.DEFERRED,
            generated_tokens=made,
            session_id=item.session,
            round=world.rounds[row],
            missed_round=world.missed_before[row],
        )

    def _worker(self, number: int) -> Worker:
        preset = self._world.preset
        prefers = Stage.PREFILL if number < self._world.settings.prefill_workers else Stage.DECODE
        return Worker(
            id=self._names[number],
            prefers=prefers,
            may=BOTH,
            latency=preset.latency,
            max_seqs=preset.max_seqs,
            max_batch_tokens=preset.max_batch_tokens,
            block_size=preset.block_size,
            total_blocks=preset.blocks,
            free_blocks=preset.blocks,
            running=0,
            fingerprint=preset.name,
            pull_s=preset.transfer_s(1024) / 1024,
        )

    def _report_at(self, number: int, time_s: float) -> None:
        if self._world.settings.report_s > 0:
            self._world.agenda.at(time_s, Kind.REPORT, lambda now_s: self._report(number, now_s))

    def _report(self, number: int, now_s: float) -> None:
        engine = self._world.engines[number]
        if engine.alive:
            for row in engine.members:
                self._update(row, now_s)
            self._workers[number] = replace(
                self._workers[number],
                free_blocks=engine.free_blocks,
                running=engine.size,
                step_s=engine.pace_s,
                draft_tokens=engine.draft_tokens,
            )
        self._report_at(number, now_s + self._world.settings.report_s)

    def _update(self, row: int, now_s: float) -> None:
        running = self._table.get(self._world.book.names[row])
        if running is None:
            return
        rows = self._world.book.rows
        made = int(rows["count"][row])
        begun = running.first_token_s is not None or not bool(rows["fresh"][row])
        known = self._world.book.known(row)
        self._table.put(
            replace(
                running,
                todo_tokens=0 if begun else known - int(rows["computed"][row]),
                generated_tokens=made,
                context_tokens=known,
                first_token_s=(running.first_token_s or float(rows["first"][row])) if begun else None,
                seen_s=now_s,
            )
        )

    # planning

    def _soon(self, now_s: float) -> None:
        self._plan_by(now_s + self._world.settings.plan_s)

    def _plan_by(self, time_s: float) -> None:
        time_s = max(time_s, self._last_plan_s + self._world.settings.replan_s)
        if self._next_plan_s is None or time_s < self._next_plan_s:
            self._next_plan_s = time_s
            self._world.agenda.at(time_s, Kind.PLAN, lambda now_s: self._plan(now_s, time_s))

    def _plan(self, now_s: float, planned_s: float) -> None:
        if planned_s != self._next_plan_s:
            return  # an earlier plan took its place
        self._next_plan_s = None
        self._last_plan_s = now_s
        self._claim(now_s)
        if not self._held:
            return
        self.plans += 1
        state = ClusterState(
            cycle=self.plans,
            held=list(self._held.values()),
            running=self._table,
            workers=self._live_workers(now_s),
            hop_s=self._world.settings.hop_s,
            survival=self._learner.snapshot((one.tier, one.generated_tokens) for one in self._table),
            arriving=self._arriving.rate(now_s),
        )
        started_s = time.perf_counter()
        plan = self._policy.plan(state, now_s)
        self.planning_s += time.perf_counter() - started_s
        for name, decision in plan.dispatch.items():
            self._dispatch(self._held.pop(name), decision, now_s)
        for name, decision in plan.defer.items():
            self._fate(name, decision)
            self._held[name] = replace(self._held[name], deferred=True)
        for name, decision in plan.reject.items():
            self._fate(name, decision)
            del self._held[name]
            self._world.refuse(self._world.book.index[name], now_s)
        if plan.wake_s is not None:
            self._plan_by(plan.wake_s)
        if self._queue and len(self._held) < self._world.settings.window:
            self._soon(now_s)

    def _claim(self, now_s: float) -> None:
        """Take requests into the window, in order of their coming; those out of patience are refused."""
        for name, held in list(self._held.items()):
            if now_s > held.arrival_s + held.patience_s and held.generated_tokens == 0:
                del self._held[name]
                row = self._world.book.index[name]
                self._world.fates[row].verdict = Verdict.REJECTED
                self._world.refuse(row, now_s)
        while self._queue and len(self._held) < self._world.settings.window:
            held = self._queue.popleft()
            self._held[held.id] = held

    def _live_workers(self, now_s: float) -> dict[str, Worker]:
        live = {number: worker for number, worker in self._workers.items() if number not in self._dead}
        engines, known = self._world.engines, self._world.settings.steps_known
        until_s = {n: engines[n].busy_until_s if known else engines[n].told_until_s(now_s) for n in live}
        return {
            self._names[n]: replace(one, busy_until_s=until_s[n], stepped_s=0.0 if known else self._stepped_s[n])
            for n, one in live.items()
        }

    def _fate(self, name: str, decision: Decision) -> None:
        fate = self._world.fates[self._world.book.index[name]]
        fate.promoted = fate.deferred and decision.verdict is Verdict.ADMITTED
        fate.deferred |= decision.verdict is Verdict.DEFERRED
        fate.verdict = decision.verdict
        if decision.predicted_ttft_ms is not None:
            fate.predicted_ttft_s = decision.predicted_ttft_ms / 1e3
        if decision.predicted_tpot_ms is not None:
            fate.predicted_tpot_s = decision.predicted_tpot_ms / 1e3

    def _dispatch(self, held: Held, decision: Decision, now_s: float) -> None:
        row = self._world.book.index[held.id]
        self._fate(held.id, decision)
        assert decision.prefill_worker is not None
        assert decision.decode_worker is not None
        promised = decision.verdict is Verdict.ADMITTED
        self._decisions[row] = decision
        self._table.put(
            Running(
                id=held.id,
                tier=held.tier,
                objective=held.objective if promised else None,
                prefill_worker=decision.prefill_worker,
                decode_worker=decision.decode_worker,
                todo_tokens=held.need_tokens,
                context_tokens=held.need_tokens,
                generated_tokens=held.generated_tokens,
                max_tokens=held.max_tokens,
                first_token_s=None,
                dispatched_s=now_s,
                seen_s=now_s,
                dispatched_tokens=held.generated_tokens,
            )
        )
        self._world.book.rows["fresh"][row] = True
        self._world.send(row, self._numbers[decision.prefill_worker], now_s, promised)

    def waiting(self) -> Iterator[int]:
        """Rows that wait for a decision or for capacity."""
        for held in (*self._held.values(), *self._queue):
            yield self._world.book.index[held.id]
