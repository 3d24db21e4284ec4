"""The requests that the planner holds: claimed from the tiers, waiting for a decision.

What can't be promised must not keep what can be from being seen: requests that were deferred do not count towards the
window, a plan is shown only some of them, and offline work may have a share of the window only.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from admission.objectives import resolve
from admission.plan import Held, Worker
from common.bus.interface import Claim, Room
from common.messages import Decision

SHARE = 4
"""A plan sees at most this part of the window in deferred requests, and as much in offline work."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One held request: the claim on the queue, what the planner sees of it, and its last decision."""

    claim: Claim
    held: Held
    claimed_s: float
    decision: Decision | None = None


class Window:
    """What a plan sees is at most ``size`` requests; every tier may always hold a few, so that none starves.

    ``offline`` are the tiers whose requests never have an SLO.
    """

    def __init__(self, size: int, tiers: Sequence[str], offline: Collection[str] = ()) -> None:
        self._size = size
        self._tiers = tuple(tiers)
        self._offline = frozenset(offline)
        self._share = max(1, size // SHARE)
        self._reserved = max(1, size // (2 * len(tiers)))
        self._waiting: dict[str, Waiting] = {}
        self._open: dict[str, None] = {}
        self._deferred: dict[str, None] = {}
        self._unresolved: dict[str, None] = {}
        self._fresh: dict[str, None] = {}
        self._patience: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def __iter__(self) -> Iterator[Waiting]:
        return iter(list(self._waiting.values()))

    def in_view(self) -> list[Waiting]:
        """What the next plan decides on: all that was not deferred, the oldest and the latest of what was.

        The oldest are served next in left-over capacity, and the latest may yet be promised.
        """
        seen: Iterable[str] = self._deferred
        if len(self._deferred) > self._share:
            latest = self._share // 2
            seen = chain(islice(self._deferred, self._share - latest), islice(reversed(self._deferred), latest))
        return [self._waiting[request_id] for request_id in chain(self._open, seen)]

    def undecided(self) -> list[Waiting]:
        """What has not been planned yet, as far as its objective is known; each is given once."""
        fresh = [self._waiting[request_id] for request_id in self._fresh if request_id not in self._unresolved]
        for waiting in fresh:
            del self._fresh[waiting.held.id]
        return fresh

    def rooms(self) -> tuple[dict[str, Room], int]:
        """How many requests each tier may still hold, and how many seats they share beyond their own."""
        used = Counter(self._waiting[request_id].claim.request.tier for request_id in self._open)
        own = {tier: max(0, self._reserved - used[tier]) for tier in self._tiers}
        shared = self._size - len(self._open) - min(len(self._deferred), self._share) - sum(own.values())
        rooms = {}
        for tier in self._tiers:
            most = own[tier] + max(0, shared)
            rooms[tier] = Room(own[tier], min(most, self._share - used[tier]) if tier in self._offline else most)
        return rooms, max(0, shared)

    def add(self, claims: Iterable[Claim], workers: Iterable[Worker], now_s: float) -> None:
        """Hold newly claimed requests."""
        known = list(workers)
        for claim in claims:
            waiting, request_id = Waiting(claim, _held(claim, known), now_s), claim.request.id
            self._waiting[request_id] = waiting
            self._sort(waiting)
            self._fresh[request_id] = None
            heapq.heappush(self._patience, (waiting.held.arrival_s + waiting.held.patience_s, request_id))
            if claim.request.slo is not None and waiting.held.objective is None:
                self._unresolved[request_id] = None

    def resolve(self, workers: Iterable[Worker]) -> None:
        """Resolve what had no objective because no engine was known when it came."""
        known = list(workers)
        for request_id in list(self._unresolved) if known else []:
            waiting = self._waiting[request_id]
            objective = resolve(waiting.claim.request, known)
            if objective is not None:
                self._waiting[request_id] = replace(waiting, held=replace(waiting.held, objective=objective))
                del self._unresolved[request_id]

    def decided(self, request_id: str, decision: Decision, deferred: bool) -> None:
        """Remember a decision that leaves the request waiting."""
        waiting = self._waiting[request_id]
        held = replace(waiting.held, deferred=deferred)
        waiting = self._waiting[request_id] = replace(waiting, held=held, decision=decision)
        self._sort(waiting)

    def pop(self, request_id: str) -> Waiting | None:
        """Stop holding a request."""
        for names in (self._open, self._deferred, self._unresolved, self._fresh):
            names.pop(request_id, None)
        return self._waiting.pop(request_id, None)

    def get(self, request_id: str) -> Waiting | None:
        """One held request."""
        return self._waiting.get(request_id)

    def clear(self) -> None:
        """Forget everything; the queue still has it."""
        for held in (self._waiting, self._open, self._deferred, self._unresolved, self._fresh, self._patience):
            held.clear()

    def out_of_patience(self, now_s: float) -> list[Waiting]:
        """What has waited longer than its sender wants to."""
        gone: dict[str, Waiting] = {}
        while self._patience and self._patience[0][0] < now_s:
            at_s, request_id = heapq.heappop(self._patience)
            waiting = self._waiting.get(request_id)
            if waiting is not None and waiting.held.arrival_s + waiting.held.patience_s == at_s:
                gone[request_id] = waiting
        for waiting in gone.values():  # until it is ended it may be asked for again
            heapq.heappush(self._patience, (waiting.held.arrival_s + waiting.held.patience_s, waiting.held.id))
        return list(gone.values())

    def _sort(self, waiting: Waiting) -> None:
        """Deferred or open; the order within each is kept."""
        held = waiting.held
        into, out = (self._deferred, self._open) if held.deferred else (self._open, self._deferred)
        if waiting.claim.request.slo is None:
            into, out = self._open, self._deferred
        out.pop(held.id, None)
        into.setdefault(held.id)


def _held(claim: Claim, workers: list[Worker]) -> Held:
    request = claim.request
    return Held(
        id=request.id,
        tier=request.tier,
        need_tokens=len(request.prompt) + len(claim.generated),
        max_tokens=max(1, request.sampling.max_tokens - len(claim.generated)),
        arrival_s=request.arrival_s,
        objective=resolve(request, workers),
        value=request.value,
        overload=request.overload,
        patience_s=request.patience_ms / 1e3,
        deferred=claim.deferred_s is not None,
        generated_tokens=len(claim.generated),
        session_id=request.session_id,
        first_token_s=claim.first_token_s,
    )
