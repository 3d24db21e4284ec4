"""What :class:`common.bus.memory.MemoryBus` keeps, and the steps that its verbs are made of."""

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from common.bus.interface import Claim, DeadLetter, QueueDepth
from common.bus.memory_log import Log, Wakeups, cursor_at
from common.errors import LeadershipLost
from common.keys import ADMISSION
from common.messages import (
    Cancel,
    Control,
    Decision,
    End,
    Frame,
    Progress,
    Record,
    Reply,
    Request,
    Stage,
    State,
    Work,
    WorkerState,
)

PROGRESS_BOUND = 10_000
DEAD_LETTER_BOUND = 10_000


@dataclass(slots=True)
class Stored:
    """One request's state while it changes; see :class:`common.messages.Record` for what it means."""

    request: Request
    entry: int
    state: State = State.QUEUED
    attempt: int = 1
    deaths: int = 0
    reported: int = 0
    generated: list[int] = field(default_factory=list)
    decision: Decision | None = None
    deferred_s: float | None = None
    end: End | None = None
    notes: dict[str, float] = field(default_factory=dict)
    prefill_worker: str | None = None
    decode_worker: str | None = None
    holder: str | None = None
    work: Work | None = None

    def snapshot(self) -> Record:
        """The record as others see it now."""
        return Record(
            request=self.request,
            state=self.state,
            attempt=self.attempt,
            decision=self.decision,
            generated=tuple(self.generated),
            end=self.end,
            notes=dict(self.notes),
            prefill_worker=self.prefill_worker,
            decode_worker=self.decode_worker,
        )


@dataclass(slots=True)
class Waiting:
    """One entry of a tier; ``planner`` holds it, None if nobody does."""

    request_id: str
    planner: str | None = None
    deliveries: int = 0


class MemoryStore:
    """All state of one bus; none of the steps awaits. ``clock`` gives seconds of the epoch."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._count = 0
        self._arrived = 0
        self._wakeups = Wakeups()
        self._records: dict[str, Stored] = {}
        self._tiers: defaultdict[str, OrderedDict[int, Waiting]] = defaultdict(OrderedDict)
        self._inflight: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._work: defaultdict[tuple[Stage, str], deque[tuple[str, int]]] = defaultdict(deque)
        self._replies: defaultdict[str, Log[Reply]] = defaultdict(Log)
        self._controls: defaultdict[str, Log[Control]] = defaultdict(Log)
        self._progress: Log[Progress] = Log(PROGRESS_BOUND)
        self._finished: list[tuple[float, str]] = []
        self._dead_letters: deque[DeadLetter] = deque(maxlen=DEAD_LETTER_BOUND)
        self._leader: str | None = None
        self._leads_until_s = 0.0
        self._token = 0
        self._workers: dict[str, tuple[WorkerState | None, float]] = {}
        self._buried: set[str] = set()
        self._busy_until_s: dict[str, float] = {}

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _check_leader(self, planner: str) -> None:
        if self._leader != planner:
            raise LeadershipLost(f"{planner} does not lead")

    def _check_token(self, token: int) -> None:
        if self._token != token:
            raise LeadershipLost(f"fencing token {token} is stale")

    def _depth(self, tier: str) -> QueueDepth:
        waiting = self._tiers[tier]
        first = next(iter(waiting.values()), None)
        return QueueDepth(len(waiting), self._records[first.request_id].request.arrival_s if first else None)

    def _enqueue(self, stored: Stored) -> None:
        stored.entry = self._arrived = self._next()
        self._tiers[stored.request.tier][stored.entry] = Waiting(stored.request.id)
        self._wakeups.wake("progress")

    def _dequeue(self, stored: Stored) -> None:
        self._tiers[stored.request.tier].pop(stored.entry, None)

    def _deliver(self, tier: str, number: int, planner: str) -> Claim:
        waiting = self._tiers[tier][number]
        if waiting.planner != planner:
            waiting.planner, waiting.deliveries = planner, waiting.deliveries + 1
        stored = self._records[waiting.request_id]
        generated, first_token_s = tuple(stored.generated), stored.notes.get("first_token_s")
        return Claim(cursor_at(number), stored.request, stored.attempt, generated, stored.deferred_s, first_token_s)

    def _give(self, stored: Stored, stage: Stage, worker: str) -> None:
        stored.holder = worker
        self._inflight[worker][stored.request.id] = None
        self._work[stage, worker].append((stored.request.id, stored.attempt))
        self._wakeups.wake(f"process {worker}")

    def _put_back(self, stored: Stored) -> None:
        stored.state, stored.attempt, stored.work = State.QUEUED, stored.attempt + 1, None
        stored.holder = stored.prefill_worker = stored.decode_worker = None
        self._enqueue(stored)

    def _accept(self, worker: str, frame: Frame) -> bool:
        stored = self._records.get(frame.id)
        if stored is None or stored.state.ended or stored.attempt != frame.attempt or stored.holder != worker:
            return False
        skip = len(stored.generated) - frame.position
        if skip < 0:
            self._report(stored, worker, ended=True, time_s=frame.time_s)
            del self._inflight[worker][frame.id]
            self._put_back(stored)
            return False
        fresh = frame.tokens[skip:]
        if skip and not fresh and not frame.end:
            return True
        self._reply(stored, replace(frame, position=frame.position + skip, tokens=fresh))
        stored.generated.extend(fresh)
        stored.notes.update(frame.notes)
        first = bool(fresh) and stored.reported < stored.attempt
        if first:
            stored.reported = stored.attempt
        if first or frame.end:
            self._report(stored, worker, ended=frame.end is not None, time_s=frame.time_s)
        if frame.end:
            self._settle(stored, frame.end)
        return True

    def _report(self, stored: Stored, worker: str, ended: bool, time_s: float) -> None:
        news = Progress(stored.request.id, stored.attempt, worker, len(stored.generated), ended, time_s)
        self._progress.append(self._next(), news)
        self._wakeups.wake("progress")

    def _settle(self, stored: Stored, end: End) -> None:
        if stored.holder:
            self._inflight[stored.holder].pop(stored.request.id, None)
        stored.state, stored.end, stored.work = end.state, end, None
        self._finished.append((self._clock(), stored.request.id))

    def _close(self, stored: Stored, end: End) -> None:
        """End a request from outside of its worker, and tell everyone who may have it."""
        request_id = stored.request.id
        self._dequeue(stored)
        self._settle(stored, end)
        self._reply(stored, Frame(request_id, stored.attempt, len(stored.generated), (), self._clock(), end))
        for name in _names(stored.holder, stored.prefill_worker, stored.decode_worker, ADMISSION):
            if name not in self._buried:
                self._tell(name, Cancel(request_id, stored.attempt, end.reason))

    def _give_up(self, stored: Stored, reason: str) -> None:
        self._dead_letters.append(DeadLetter(stored.request.id, reason, self._clock()))
        self._close(stored, End(State.FAILED, reason))

    def _reply(self, stored: Stored, reply: Reply) -> None:
        if stored.request.reply_to:
            self._replies[stored.request.reply_to].append(self._next(), reply)
            self._wakeups.wake(f"api {stored.request.reply_to}")

    def _tell(self, name: str, control: Control) -> None:
        self._controls[name].append(self._next(), control)
        self._wakeups.wake(f"process {name}")


def _names(*workers: str | None) -> Iterable[str]:
    """The given names, each once, without None."""
    return dict.fromkeys(worker for worker in workers if worker)
