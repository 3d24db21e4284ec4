"""Tokens of one request to the text that its client sees: reasoning parted from the answer, stop strings cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from api.context import Context
from api.detokenizer import Detokenizer
from api.facts import Facts
from api.intake import Prepared
from api.stops import StopFilter
from common.codec import Tokens

LOOK_BACK = 8
"""A thought that the chat template has opened stands among this many last tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class Text:
    """What some tokens added. Text may lag behind tokens: a character or a stop string may be unfinished."""

    answer: str = ""
    reasoning: str = ""


class TextStream:
    """Feed token by token; after a stop string :attr:`stopped` is set and nothing more comes."""

    def __init__(self, context: Context, prepared: Prepared) -> None:
        prompt = prepared.request.prompt
        facts = context.facts
        self._tokenizer = context.tokenizer
        self._stops = prepared.stops
        self._min_tokens = prepared.request.sampling.min_tokens
        self._count = 0
        self._markers = (facts.thinking_start, facts.thinking_end) if prepared.chat else (None, None)
        self._thinking = prepared.chat and opens_thought(prompt, facts)
        self._detokenizer = Detokenizer(context.tokenizer, prompt)
        self._filter = StopFilter(self._stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._filter.stopped

    def feed(self, token: int) -> Text:
        """The text that this token completes."""
        self._count += 1
        if token in self._markers:
            return self._switch(thinking=token == self._markers[0])
        text = self._detokenizer.feed(token)
        return self._as_text(text if self._count < self._min_tokens else self._filter.feed(text))

    def flush(self) -> Text:
        """What was held back, at the end."""
        if self.stopped:
            return Text()
        return self._as_text(self._filter.feed(self._detokenizer.flush()) + self._filter.flush())

    def _switch(self, thinking: bool) -> Text:
        text = self.flush()
        self._thinking = thinking
        self._detokenizer = Detokenizer(self._tokenizer)
        if not self.stopped:
            self._filter = StopFilter(self._stops)
        return text

    def _as_text(self, text: str) -> Text:
        return Text(reasoning=text) if self._thinking else Text(answer=text)


def opens_thought(prompt: Sequence[int], facts: Facts) -> bool:
    """Whether the prompt ends inside of a thought, as chat templates of reasoning models do."""
    markers = [token for token in prompt[-LOOK_BACK:] if token in (facts.thinking_start, facts.thinking_end)]
    return bool(markers) and markers[-1] == facts.thinking_start


def thinking_tokens(tokens: Tokens | list[int], end: int | None) -> int | None:
    """How many tokens thinking took, its end included; None while it lasts, 0 where there is no thinking."""
    if end is None:
        return 0
    try:
        return tokens.index(end) + 1
    except ValueError:
        return None
