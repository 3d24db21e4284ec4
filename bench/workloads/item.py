"""One request of a workload."""

import math
from dataclasses import dataclass, replace

from common.errors import WorkloadError

MAX_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True)
class Item:
    """One request; raises WorkloadError naming the field that is out of range.

    ``output_tokens`` counts all tokens that are generated, of which the first ``thinking_tokens`` are thinking. Rounds
    of one ``session`` stand in the order in which they are run; one with ``after_s`` starts that long after the round
    before it ended, and its ``arrival_s`` only says not before when.
    """

    arrival_s: float
    session: str
    tier: str
    prompt_tokens: int
    output_tokens: int
    thinking_tokens: int = 0
    after_s: float | None = None
    tenant: str = "t1"

    def __post_init__(self) -> None:
        for name in ("arrival_s", "after_s"):
            value = getattr(self, name)
            if value is None and name == "after_s":
                continue
            if type(value) not in (int, float) or not 0 <= value < math.inf:
                raise WorkloadError(f"{name} must be a number of seconds, at least 0")
        for name, least in (("prompt_tokens", 1), ("output_tokens", 1), ("thinking_tokens", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= MAX_TOKENS:
                raise WorkloadError(f"{name} must be an integer from {least} to {MAX_TOKENS}")
        if self.thinking_tokens > self.output_tokens:
            raise WorkloadError("thinking_tokens are part of output_tokens and can't be more")
        for name in ("session", "tier", "tenant"):
            value = getattr(self, name)
            if type(value) is not str or not value:
                raise WorkloadError(f"{name} must be a string that is not empty")


def in_order(items: list[Item]) -> list[Item]:
    """Items in order of arrival; rounds of a session stay in their order."""
    return sorted(items, key=lambda item: item.arrival_s)


def moved(item: Item, arrival_s: float) -> Item:
    """The same request at another time."""
    return replace(item, arrival_s=arrival_s)
