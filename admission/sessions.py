"""What earlier rounds of a session mean for the next: where its prefix is, and whether its promise still counts.

Rounds of a tool loop share a fate: once one has missed its SLO the session as a whole has, and later rounds are
served as best effort, so that they cost no other session its promise.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

from admission.plan import Held, Running
from common.messages import Progress
from common.slo import TOLERANCE

MOST_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """Rounds so far; the worker that prefilled the last one still has its first ``prefix_tokens`` in its cache."""

    rounds: int = 0
    prefix_worker: str | None = None
    prefix_tokens: int = 0
    missed: bool = False


class Sessions:
    """The sessions seen last, bounded."""

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._of: dict[str, str] = {}

    def apply(self, held: Held) -> Held:
        """The request with what its session's earlier rounds mean for it."""
        session = None if held.session_id is None else self._sessions.get(held.session_id)
        if session is None:
            return held
        return replace(
            held,
            prefix_worker=session.prefix_worker,
            prefix_tokens=min(session.prefix_tokens, held.need_tokens - 1),
            round=session.rounds,
            missed_round=session.missed,
        )

    def dispatched(self, held: Held, prefill_worker: str) -> None:
        """A round was sent to a worker."""
        if held.session_id is None:
            return
        before = self._sessions.pop(held.session_id, Session())
        self._sessions[held.session_id] = replace(
            before, rounds=before.rounds + 1, prefix_worker=prefill_worker, prefix_tokens=held.need_tokens
        )
        self._of[held.id] = held.session_id
        while len(self._sessions) > self._most:
            self._sessions.popitem(last=False)

    def ended(self, running: Running, progress: Progress) -> None:
        """A round has ended; it missed if its first or last token was late, or nothing was promised."""
        name = self._of.pop(running.id, None)
        session = None if name is None else self._sessions.get(name)
        if session is not None and name is not None and _missed(running, progress):
            self._sessions[name] = replace(session, missed=True)

    def forget(self, request_id: str) -> None:
        """The round ended otherwise."""
        self._of.pop(request_id, None)


def _missed(running: Running, progress: Progress) -> bool:
    objective, first_s = running.objective, running.first_token_s
    if objective is None:
        return True
    if first_s is None or first_s > objective.arrival_s + objective.ttft_s * (1 + TOLERANCE):
        return True
    # where thinking ended is not known here: in doubt it was where its pace is the looser one
    count = max(1, progress.generated)
    last_due_s = max(objective.token_due_s(count, first_s, thought) for thought in (None, 0))
    return progress.time_s > last_due_s + TOLERANCE * (last_due_s - first_s)
