"""Between which tokens a reasoning model thinks."""

from collections.abc import Sequence
from dataclasses import dataclass

LOOK_BACK = 8
"""A thought that the chat template has opened stands among this many last tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class Thinking:
    """Token ids around a thought; None where there is no such token. Without an end nothing is thinking."""

    start: int | None = None
    end: int | None = None

    def opened_by(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends inside of a thought, as chat templates of reasoning models do."""
        markers = [token for token in prompt[-LOOK_BACK:] if token in (self.start, self.end)]
        return bool(markers) and markers[-1] == self.start

    def awaited_start(self, prompt: Sequence[int]) -> int | None:
        """The token that the output must begin with to be thinking; None if it thinks from its first token on."""
        return None if self.opened_by(prompt) else self.start


NO_THINKING = Thinking()
