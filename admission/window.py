"""The requests that the planner holds: claimed from the tiers, waiting for a decision."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from admission.objectives import resolve
from admission.plan import Held, Worker
from common.bus.interface import Claim
from common.messages import Decision


@dataclass(frozen=True, slots=True)
class Waiting:
    """One held request: the claim on the queue, what the planner sees of it, and its last decision."""

    claim: Claim
    held: Held
    claimed_s: float
    decision: Decision | None = None


class Window:
    """At most ``size`` held requests; every tier may always hold a few, so that none starves in its stream."""

    def __init__(self, size: int, tiers: Sequence[str]) -> None:
        self._size = size
        self._tiers = tuple(tiers)
        self._reserved = max(1, size // (2 * len(tiers)))
        self._waiting: dict[str, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._waiting

    def __iter__(self) -> Iterator[Waiting]:
        return iter(list(self._waiting.values()))

    def room(self) -> dict[str, int]:
        """How many requests each tier may still hold, if only that tier claims."""
        used = Counter(waiting.claim.request.tier for waiting in self._waiting.values())
        kept_free = {tier: max(0, self._reserved - used[tier]) for tier in self._tiers}
        free = self._size - len(self._waiting)
        return {tier: max(kept_free[tier], free - sum(kept_free.values()) + kept_free[tier]) for tier in self._tiers}

    def add(self, claims: Iterable[Claim], workers: Iterable[Worker], now_s: float) -> None:
        """Hold newly claimed requests."""
        known = list(workers)
        for claim in claims:
            self._waiting[claim.request.id] = Waiting(claim, _held(claim, known), now_s)

    def resolve(self, workers: Iterable[Worker]) -> None:
        """Resolve what had no objective because no engine was known when it came."""
        known = list(workers)
        for waiting in self:
            request = waiting.claim.request
            if request.slo is not None and waiting.held.objective is None:
                held = replace(waiting.held, objective=resolve(request, known))
                self._waiting[request.id] = replace(waiting, held=held)

    def decided(self, request_id: str, decision: Decision, deferred: bool) -> None:
        """Remember a decision that leaves the request waiting."""
        waiting = self._waiting[request_id]
        held = replace(waiting.held, deferred=deferred)
        self._waiting[request_id] = replace(waiting, held=held, decision=decision)

    def pop(self, request_id: str) -> Waiting | None:
        """Stop holding a request."""
        return self._waiting.pop(request_id, None)

    def get(self, request_id: str) -> Waiting | None:
        """One held request."""
        return self._waiting.get(request_id)

    def clear(self) -> None:
        """Forget everything; the queue still has it."""
        self._waiting.clear()

    def out_of_patience(self, now_s: float) -> list[Waiting]:
        """What has waited longer than its sender wants to."""
        return [waiting for waiting in self if now_s > waiting.held.arrival_s + waiting.held.patience_s]


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
    )
