"""One request on its way to a real system, and what the client has seen of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from common.messages import Slo, Verdict

FIRST_TOKEN, VOCABULARY = 300, 2000


class AnswerError(Exception):
    """A server refused a request, or its answer broke off; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to ask for: exactly ``output_tokens`` tokens, whatever the model says.

    ``slo`` is absolute. Only systems that know SLOs are told of it, of the session and of the tenant.
    """

    number: int
    prompt: Sequence[int]
    output_tokens: int
    slo: Slo | None = None
    session: str | None = None
    last_round: bool = False


@dataclass(slots=True)
class Answer:
    """What came back; times are seconds of the epoch at which tokens reached the client.

    ``verdicts`` are all that the system has told, none from a system that makes no promises. ``error`` is why the
    request ended without all of its tokens.
    """

    token_times_s: list[float] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    error: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def came(self, tokens: int, now_s: float) -> None:
        """So many tokens have reached the client."""
        self.token_times_s.extend([now_s] * tokens)


async def raise_for_status(response: aiohttp.ClientResponse) -> None:
    """Raises AnswerError with what the server says."""
    if response.status != 200:
        raise AnswerError(f"{response.status}: {(await response.text())[:300]}")
