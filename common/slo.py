"""Deadlines, slack and attainment: the one meaning of an SLO, for the api, the planner, engines and benchmarks.

The first token is due at ``arrival + TTFT``. Token n (counted from 1) is due at ``t0 + TPOT*(n-1)`` with
``t0 = max(arrival + TTFT, time of the first token)``. While a reasoning model thinks, its thinking TPOT counts,
and from the end-of-thinking token on the answer's. A request attained its SLO if the first token, each tenth
and the last came in time, with a tolerance of 5 % on TTFT and TPOT.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TOLERANCE = 0.05
CHECK_EVERY = 10


@dataclass(frozen=True, slots=True)
class Objective:
    """A resolved SLO: everything absolute, in seconds. ``thinking_tpot_s`` is None outside of reasoning."""

    arrival_s: float
    ttft_s: float
    tpot_s: float
    thinking_tpot_s: float | None = None

    @property
    def prefill_due_s(self) -> float:
        """When the first token is due at the client."""
        return self.arrival_s + self.ttft_s

    @property
    def tightest_tpot_s(self) -> float:
        """The smaller of the stages' TPOTs."""
        return self.tpot_s if self.thinking_tpot_s is None else min(self.tpot_s, self.thinking_tpot_s)

    def token_due_s(self, n: int, first_token_s: float, thinking_tokens: int | None = 0) -> float:
        """When token ``n`` >= 1 is due.

        ``thinking_tokens`` is how many tokens thinking took, its end token included, and None while it lasts.
        """
        start_s = max(self.prefill_due_s, first_token_s)
        if self.thinking_tpot_s is None:
            return start_s + self.tpot_s * (n - 1)
        thinking = n if thinking_tokens is None else min(n, thinking_tokens)
        gaps = max(0, thinking - 1)
        return start_s + self.thinking_tpot_s * gaps + self.tpot_s * (n - 1 - gaps)

    def current_tpot_s(self, thinking: bool) -> float:
        """The TPOT of the stage that the request is in."""
        return self.thinking_tpot_s if thinking and self.thinking_tpot_s is not None else self.tpot_s


def slack_s(due_s: float, predicted_s: float) -> float:
    """How much earlier than due something is expected; negative when it will be late."""
    return due_s - predicted_s


def attained(
    objective: Objective,
    token_times_s: Sequence[float],
    thinking_tokens: int | None = 0,
    tolerance: float = TOLERANCE,
) -> bool:
    """Whether a finished request met its SLO, from the times at which its tokens arrived.

    A request without any token did not. Tolerance stretches TTFT and TPOT, never the arrival.
    """
    if not token_times_s:
        return False
    stretch = 1 + tolerance
    first_s = token_times_s[0]
    if first_s > objective.arrival_s + objective.ttft_s * stretch:
        return False
    start_s = max(objective.prefill_due_s, first_s)
    count = len(token_times_s)
    checked = {*range(CHECK_EVERY, count + 1, CHECK_EVERY), count}
    return all(
        token_times_s[n - 1] - start_s
        <= (objective.token_due_s(n, first_s, thinking_tokens) - start_s) * stretch + 1e-9
        for n in checked
    )


def thinking_tokens(tokens: Sequence[int], start: int | None, end: int | None) -> int | None:
    """How many output tokens thinking took, its end token included; None while it lasts, 0 where there is none.

    With ``start`` only an output that begins with that token thinks; without it, it thinks from its first token on.
    """
    if end is None or (start is not None and tokens and tokens[0] != start):
        return 0
    return tokens.index(end) + 1 if end in tokens else None


@dataclass(frozen=True, slots=True)
class Pace:
    """Achieved time per output token in each stage, seconds; None for a stage of fewer than two tokens."""

    thinking_s: float | None
    answer_s: float | None


def pace(token_times_s: Sequence[float], thought: int | None) -> Pace:
    """Of both stages, which share the end-of-thinking token; ``thought`` is what :func:`thinking_tokens` says."""
    count = len(token_times_s) if thought is None else thought
    return Pace(mean_tpot_s(token_times_s[:count]), mean_tpot_s(token_times_s[max(0, count - 1) :]))


def mean_tpot_s(token_times_s: Sequence[float]) -> float | None:
    """Achieved time per output token after the first, None for fewer than two tokens."""
    if len(token_times_s) < 2:
        return None
    return (token_times_s[-1] - token_times_s[0]) / (len(token_times_s) - 1)
