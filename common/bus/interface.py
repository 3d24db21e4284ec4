"""The queue, as each kind of process sees it.

Three roles, one implementation each in Redis (:mod:`common.bus.redis`) and in memory (:mod:`common.bus.memory`),
held to one contract suite. Every verb is atomic; a verb that reports ``False`` changed nothing. All raise
BusUnavailable without a connection (a caller may repeat the verb) and BusFull when Redis is out of memory.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from common.codec import Tokens
from common.messages import (
    Control,
    Decision,
    End,
    Frame,
    Progress,
    Record,
    Reply,
    Request,
    Stage,
    Work,
    WorkerState,
)

Cursor = str
"""Position in a stream that is read without claiming; START reads from its beginning."""

START: Cursor = "0-0"


class Submitted(Enum):
    """What became of a submission."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many requests of a tier wait (held ones included) and since when the oldest does."""

    waiting: int
    oldest_arrival_s: float | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A waiting request that this planner holds; others can't see it until it is dispatched, ended or released.

    ``generated`` are the tokens that the client already has from an earlier attempt; ``deferred_s`` is when it
    was first deferred, None if it was not, and ``first_token_s`` when the first of the tokens came.
    """

    entry: str
    request: Request
    attempt: int
    generated: Tokens = ()
    deferred_s: float | None = None
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a planner is told before a plan: new claims, and until when each worker last said that it is busy."""

    claims: Sequence[Claim]
    busy_until_s: Mapping[str, float]


class News(NamedTuple):
    """What a planner reads: what became of requests, and whether any were submitted or put back (``arrived``)."""

    cursor: Cursor
    items: Sequence[Progress]
    arrived: bool


class Wake(NamedTuple):
    """What a worker reads: control messages, and work with its stage, in the order of :class:`Stage`, oldest first."""

    cursor: Cursor
    controls: Sequence[Control]
    work: Sequence[tuple[Stage, Work]]


@dataclass(frozen=True, slots=True)
class Room:
    """How many more requests of a tier a planner may hold: its ``own``, and never above ``most`` in all."""

    own: int
    most: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request or entry that was given up, and why; ``id`` is empty where it can't be known."""

    id: str
    reason: str
    time_s: float


class IngressBus(Protocol):
    """Called by the api (and offline work) for each request; a submission that returns ACCEPTED is durable."""

    async def submit(self, request: Request, max_queued: int) -> Submitted:
        """Store the record and enqueue it in its tier, unless its id exists or ``max_queued`` wait there.

        When a call that raised BusUnavailable is repeated, DUPLICATE says that the first one got through.
        """

    async def end(self, request_id: str, end: End, attempt: int | None = None) -> bool:
        """End a request from outside of a worker (cancel, stop string, expiry, rejection).

        False if it has ended, or is not of ``attempt``. Whoever holds it gets a Cancel, its api a closing Frame.
        """

    async def record(self, request_id: str) -> Record | None:
        """The record, None if unknown or past its retention."""

    async def replies(self, api: str, after: Cursor, block_s: float) -> tuple[Cursor, Sequence[Reply]]:
        """Replies after the cursor, waiting up to ``block_s``; what lies before the cursor may be forgotten."""

    async def depths(self, tiers: Sequence[str]) -> Mapping[str, QueueDepth]:
        """Waiting requests by tier."""

    async def leader(self) -> str | None:
        """Name of the planner that leads now, None if none does."""

    async def send(self, name: str, control: Control) -> None:
        """Put a control message before the process ``name`` (a worker's id or ``keys.ADMISSION``)."""


class AdmissionBus(Protocol):
    """Called by the planner leader; verbs that change a request take the fencing token of :meth:`lead`.

    They, and the claims, raise LeadershipLost once another planner leads. False from note and dispatch says that
    the claim is gone: the request has ended or is back in its tier.
    """

    async def lead(self, planner: str, ttl_s: float) -> int | None:
        """Become or stay leader for ``ttl_s``; a new leader gets a higher fencing token. None: another leads.

        A leader that comes back before another has led keeps its token, and what it has claimed.
        """

    async def resign(self, planner: str) -> None:
        """Give leadership back, if held."""

    async def claim(self, tier: str, planner: str, count: int) -> Sequence[Claim]:
        """Up to ``count`` waiting requests of one tier, oldest first, never more than one tier's."""

    async def claim_each(self, rooms: Mapping[str, Room], shared: int, planner: str) -> Claimed:
        """Waiting requests of several tiers in one step, oldest first in each.

        A tier gets its own room and what earlier ones left of the ``shared``, but no more than its most.
        """

    async def reclaim(self, tiers: Sequence[str], planner: str, max_deliveries: int = 3) -> Sequence[Claim]:
        """Everything that earlier planners held; what ``max_deliveries`` of them had is dead-lettered and failed.

        Called once by a new leader, and after BusUnavailable: what the caller holds itself is part of the answer
        and no new delivery. A planner's name belongs to one process.
        """

    async def note(self, claim: Claim, decision: Decision, token: int) -> bool:
        """Record a decision that leaves the request waiting (or is followed by its end), and tell its api."""

    async def dispatch(self, claim: Claim, work: Work, token: int) -> bool:
        """Record, work stream of ``work.decision.prefill_worker``, ack and api notice in one step.

        False if the request has ended meanwhile, or was put back because that worker is gone. Repeating a
        dispatch is harmless.
        """

    async def requeue(self, worker: str, token: int, max_deaths: int = 2) -> Sequence[str]:
        """Put a dead worker's requests back with a higher attempt, oldest arrival first; returns their ids.

        Also removes the worker. A request with ``max_deaths`` deaths behind it is dead-lettered and failed.
        """

    async def workers(self, but: Collection[str] = ()) -> Mapping[str, WorkerState | None]:
        """All registered workers but those named; None where the heartbeat has run out."""

    async def progress(self, after: Cursor, block_s: float) -> News:
        """First tokens (of each attempt) and ends after the cursor; returns early when a request is submitted."""

    async def inflight(self, worker: str) -> Sequence[Record]:
        """Records of the requests that a worker has."""


class WorkerBus(Protocol):
    """Called by one worker for itself."""

    async def beat(self, state: WorkerState, ttl_s: float) -> bool:
        """Register and stay alive for ``ttl_s``; False once the worker was declared dead: it must stop."""

    async def leave(self, worker: str) -> None:
        """Stop being alive at once; what it still has will be requeued by the leader."""

    async def emit(self, worker: str, frames: Sequence[Frame], busy_until_s: float = 0.0) -> Sequence[bool]:
        """Append tokens and ends to records and pass them to their apis, one stream entry per api.

        ``busy_until_s`` is when the worker's present iteration is expected to end, which :meth:`claim_each` tells;
        who has lost all of these requests is not heard.
        An item is False, and has no effect, if its attempt is old, its request has ended or ``worker`` does not
        have it: the worker must drop that request. Tokens before the record's position are dropped, so a replay
        is True and has no effect. After a gap, which only a loss of data in Redis leaves, the request goes back to
        its tier with a higher attempt, and the item is False. An end settles the request exactly once.
        """

    async def hand_off(self, worker: str, work: Work) -> bool:
        """Move a request to ``work.decision.decode_worker``; repeating it is harmless.

        False if it has ended or is of another attempt, or was put back because that worker is gone.
        """

    async def wait(self, worker: str, after: Cursor, block_s: float, room: int = 0) -> Wake:
        """Control messages after the cursor, and up to ``room`` pieces of work, waiting up to ``block_s`` for any.

        Without room it does not wait for work. Work is taken once; that of ended requests is left out.
        """


class Bus(IngressBus, AdmissionBus, WorkerBus, Protocol):
    """All three roles."""

    async def dead_letters(self, count: int = 100) -> Sequence[DeadLetter]:
        """The latest requests that were given up, newest first."""

    async def ping(self) -> None:
        """Raise BusUnavailable unless the queue answers."""

    async def sweep(self, older_than_s: float, count: int = 1000) -> int:
        """Forget up to ``count`` requests that ended before this time; returns how many. For background work."""

    async def close(self) -> None:
        """Release connections."""
