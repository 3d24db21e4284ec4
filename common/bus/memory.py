"""The queue in the memory of one process: for tests, demos and simulations of the control plane.

A verb never awaits between its first look and its last change, so it is atomic under asyncio. What would cross a
process boundary is encoded and decoded as on the wire.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from common.bus.interface import Claim, Claimed, Cursor, DeadLetter, News, QueueDepth, Room, Submitted, Wake
from common.bus.memory_log import cursor_at, number_of
from common.bus.memory_store import MemoryStore, Stored
from common.codec import decode, encode
from common.messages import (
    Control,
    Decided,
    Decision,
    End,
    Frame,
    Record,
    Reply,
    Request,
    Stage,
    State,
    Verdict,
    Work,
    WorkerState,
)

M = TypeVar("M")


def _over_the_wire(message: M) -> M:
    return decode(encode(message), type(message))


class MemoryBus(MemoryStore):
    """A :class:`common.bus.interface.Bus` for one process."""

    # ingress

    async def submit(self, request: Request, max_queued: int) -> Submitted:
        """See :class:`IngressBus`."""
        request = _over_the_wire(request)
        if request.id in self._records:
            return Submitted.DUPLICATE
        if len(self._tiers[request.tier]) >= max_queued:
            return Submitted.FULL
        self._records[request.id] = stored = Stored(request, entry=0)
        self._enqueue(stored)
        return Submitted.ACCEPTED

    async def end(self, request_id: str, end: End, attempt: int | None = None) -> bool:
        """See :class:`IngressBus`."""
        stored = self._records.get(request_id)
        if stored is None or stored.state.ended or attempt not in (None, stored.attempt):
            return False
        self._close(stored, _over_the_wire(end))
        return True

    async def record(self, request_id: str) -> Record | None:
        """See :class:`IngressBus`."""
        stored = self._records.get(request_id)
        return stored.snapshot() if stored else None

    async def replies(self, api: str, after: Cursor, block_s: float) -> tuple[Cursor, Sequence[Reply]]:
        """See :class:`IngressBus`."""
        log, number = self._replies[api], number_of(after)
        log.forget(number)
        await self._wakeups.wait(f"api {api}", lambda: log.last > number, block_s)
        return cursor_at(max(number, log.last)), log.after(number)

    async def depths(self, tiers: Sequence[str]) -> Mapping[str, QueueDepth]:
        """See :class:`IngressBus`."""
        return {tier: self._depth(tier) for tier in tiers}

    async def leader(self) -> str | None:
        """See :class:`IngressBus`."""
        return self._leader if self._clock() < self._leads_until_s else None

    async def send(self, name: str, control: Control) -> None:
        """See :class:`IngressBus`."""
        self._tell(name, _over_the_wire(control))

    # admission

    async def lead(self, planner: str, ttl_s: float) -> int | None:
        """See :class:`AdmissionBus`."""
        now_s = self._clock()
        if self._leader != planner:
            if self._leader is not None and now_s < self._leads_until_s:
                return None
            self._leader, self._token = planner, self._token + 1
        self._leads_until_s = now_s + ttl_s
        return self._token

    async def resign(self, planner: str) -> None:
        """See :class:`AdmissionBus`."""
        if self._leader == planner:
            self._leads_until_s = 0.0

    async def claim(self, tier: str, planner: str, count: int) -> Sequence[Claim]:
        """See :class:`AdmissionBus`."""
        self._check_leader(planner)
        free = [number for number, waiting in self._tiers[tier].items() if waiting.planner is None]
        return [self._deliver(tier, number, planner) for number in free[: max(0, count)]]

    async def claim_each(self, rooms: Mapping[str, Room], shared: int, planner: str) -> Claimed:
        """See :class:`AdmissionBus`."""
        self._check_leader(planner)
        claims: list[Claim] = []
        for tier, room in rooms.items():
            got = await self.claim(tier, planner, min(room.most, room.own + shared))
            shared -= max(0, len(got) - room.own)
            claims += got
        return Claimed(claims, dict(self._busy_until_s))

    async def reclaim(self, tiers: Sequence[str], planner: str, max_deliveries: int = 3) -> Sequence[Claim]:
        """See :class:`AdmissionBus`."""
        self._check_leader(planner)
        claims = []
        for tier in tiers:
            for number, waiting in list(self._tiers[tier].items()):
                if waiting.planner is None:
                    continue
                if waiting.planner != planner and waiting.deliveries >= max_deliveries:
                    self._give_up(self._records[waiting.request_id], "poison")
                else:
                    claims.append(self._deliver(tier, number, planner))
        return claims

    async def note(self, claim: Claim, decision: Decision, token: int) -> bool:
        """See :class:`AdmissionBus`."""
        self._check_token(token)
        stored = self._records.get(claim.request.id)
        if stored is None or stored.state is not State.QUEUED or stored.attempt != claim.attempt:
            return False
        stored.decision = _over_the_wire(decision)
        if decision.verdict is Verdict.DEFERRED and stored.deferred_s is None:
            stored.deferred_s = decision.decided_s
        self._reply(stored, Decided(stored.request.id, stored.attempt, stored.decision))
        return True

    async def dispatch(self, claim: Claim, work: Work, token: int) -> bool:
        """See :class:`AdmissionBus`."""
        self._check_token(token)
        work, worker = _over_the_wire(work), work.decision.prefill_worker
        if worker is None:
            raise ValueError("a dispatch needs a prefill worker")
        stored = self._records.get(claim.request.id)
        if stored is None or stored.state.ended or stored.attempt != work.attempt:
            return False
        if stored.state is State.RUNNING:
            return stored.holder == worker
        self._dequeue(stored)
        if worker in self._buried:
            self._enqueue(stored)
            return False
        stored.state, stored.decision, stored.work = State.RUNNING, work.decision, work
        stored.prefill_worker, stored.decode_worker = worker, work.decision.decode_worker
        self._give(stored, Stage.PREFILL, worker)
        self._reply(stored, Decided(stored.request.id, stored.attempt, work.decision))
        return True

    async def requeue(self, worker: str, token: int, max_deaths: int = 2) -> Sequence[str]:
        """See :class:`AdmissionBus`."""
        self._check_token(token)
        self._workers.pop(worker, None)
        self._busy_until_s.pop(worker, None)
        self._controls.pop(worker, None)
        self._buried.add(worker)
        for stage in Stage:
            self._work.pop((stage, worker), None)
        requeued = []
        mine = [self._records[request_id] for request_id in self._inflight.pop(worker, {})]
        for stored in sorted(mine, key=lambda stored: (stored.request.arrival_s, stored.request.id)):
            stored.deaths += 1
            if stored.deaths >= max_deaths:
                self._give_up(stored, "worker_died")
            else:
                self._put_back(stored)
                requeued.append(stored.request.id)
        return requeued

    async def workers(self, but: Collection[str] = ()) -> Mapping[str, WorkerState | None]:
        """See :class:`AdmissionBus`."""
        now_s = self._clock()
        others = ((name, *beat) for name, beat in self._workers.items() if name not in but)
        return {name: state if now_s < until_s else None for name, state, until_s in others}

    async def progress(self, after: Cursor, block_s: float) -> News:
        """See :class:`AdmissionBus`."""
        number = number_of(after)
        await self._wakeups.wait("progress", lambda: max(self._arrived, self._progress.last) > number, block_s)
        cursor = cursor_at(max(number, self._arrived, self._progress.last))
        return News(cursor, self._progress.after(number), self._arrived > number)

    async def inflight(self, worker: str) -> Sequence[Record]:
        """See :class:`AdmissionBus`."""
        return [self._records[request_id].snapshot() for request_id in self._inflight.get(worker, {})]

    # workers

    async def beat(self, state: WorkerState, ttl_s: float) -> bool:
        """See :class:`WorkerBus`."""
        if state.id in self._buried:
            return False
        self._workers[state.id] = (_over_the_wire(state), self._clock() + ttl_s)
        return True

    async def leave(self, worker: str) -> None:
        """See :class:`WorkerBus`."""
        if worker in self._workers:
            self._workers[worker] = (None, 0.0)

    async def emit(self, worker: str, frames: Sequence[Frame], busy_until_s: float = 0.0) -> Sequence[bool]:
        """See :class:`WorkerBus`."""
        accepted = [self._accept(worker, _over_the_wire(frame)) for frame in frames]
        if any(accepted) and busy_until_s > 0:
            self._busy_until_s[worker] = busy_until_s
        return accepted

    async def hand_off(self, worker: str, work: Work) -> bool:
        """See :class:`WorkerBus`."""
        work, target = _over_the_wire(work), work.decision.decode_worker
        if target is None:
            raise ValueError("a hand-off needs a decode worker")
        stored = self._records.get(work.request.id)
        if stored is None or stored.state is not State.RUNNING or stored.attempt != work.attempt:
            return False
        if stored.holder != worker:
            return stored.holder == target and stored.prefill_worker == worker
        del self._inflight[worker][work.request.id]
        if target in self._buried:
            self._put_back(stored)
            return False
        stored.work, stored.decode_worker = work, target
        self._give(stored, Stage.DECODE, target)
        return True

    async def wait(self, worker: str, after: Cursor, block_s: float, room: int = 0) -> Wake:
        """See :class:`WorkerBus`."""
        number = number_of(after)
        self._controls[worker].forget(number)

        def ready() -> bool:
            waiting = room > 0 and any(self._work[stage, worker] for stage in Stage)
            return waiting or self._controls[worker].last > number

        await self._wakeups.wait(f"process {worker}", ready, block_s)
        log = self._controls[worker]
        return Wake(cursor_at(max(number, log.last)), log.after(number), self._take(worker, room))

    def _take(self, worker: str, room: int) -> Sequence[tuple[Stage, Work]]:
        taken: list[tuple[Stage, Work]] = []
        for stage in Stage:
            queue = self._work[stage, worker]
            while queue and len(taken) < room:
                request_id, attempt = queue.popleft()
                stored = self._records.get(request_id)
                if stored and stored.work and stored.attempt == attempt and stored.holder == worker:
                    taken.append((stage, stored.work))
        return taken

    # all

    async def dead_letters(self, count: int = 100) -> Sequence[DeadLetter]:
        """See :class:`Bus`."""
        return list(reversed(self._dead_letters))[:count]

    async def ping(self) -> None:
        """See :class:`Bus`."""

    async def sweep(self, older_than_s: float, count: int = 1000) -> int:
        """See :class:`Bus`."""
        old = [item for item in self._finished if item[0] < older_than_s][:count]
        for item in old:
            self._finished.remove(item)
            del self._records[item[1]]
        return len(old)

    async def close(self) -> None:
        """See :class:`Bus`."""
