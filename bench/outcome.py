"""What became of each request of a run, simulated or real."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.workloads.item import Item
from common.messages import Verdict
from common.slo import TOLERANCE, Objective, attained, mean_tpot_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request; ``token_times_s`` are those at which its tokens reached the client, and may be too few.

    ``verdict`` is the last one: ADMITTED means that the SLO was promised, or that the system knows no promises.
    ``promoted`` had been told that it was deferred, and was promised its SLO later. ``ended_s`` is when it was served
    or refused (None: neither when the run ended). ``session_missed``: an earlier round of its session missed its SLO,
    and rounds share a fate.
    """

    item: Item
    objective: Objective | None
    verdict: Verdict
    token_times_s: tuple[float, ...]
    arrival_s: float
    ended_s: float | None
    promoted: bool = False
    deferred: bool = False
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    session_missed: bool = False

    @property
    def served(self) -> bool:
        """Whether it got all of its tokens."""
        return len(self.token_times_s) >= self.item.output_tokens

    @property
    def ttft_s(self) -> float:
        """Time to first token, infinite without one."""
        return self.token_times_s[0] - self.arrival_s if self.token_times_s else math.inf

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        return mean_tpot_s(self.token_times_s)

    def attained(self, tolerance: float = TOLERANCE) -> bool:
        """Whether it was promised its SLO, and got it (see :func:`common.slo.attained`)."""
        return self.verdict is Verdict.ADMITTED and self.met(tolerance)

    def met(self, tolerance: float = TOLERANCE) -> bool:
        """Whether its tokens came in time, promised or not, and those of its session's earlier rounds."""
        if self.objective is None or not self.served or self.session_missed:
            return False
        return attained(self.objective, self.token_times_s, self.item.thinking_tokens, tolerance)


def share_fates(outcomes: Sequence[Outcome], tolerance: float = TOLERANCE) -> list[Outcome]:
    """The same, in the same order, with the rounds of each session after its first miss marked, under every system."""
    missed: set[str] = set()
    found = list(outcomes)
    for i in sorted(range(len(found)), key=lambda i: found[i].arrival_s):
        session = found[i].item.session
        if session in missed:
            found[i] = replace(found[i], session_missed=True)
        elif found[i].objective is not None and not found[i].attained(tolerance):
            missed.add(session)
    return found
