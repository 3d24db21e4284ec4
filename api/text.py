"""Tokens of one request to the text that its client sees: reasoning parted from the answer, stop strings cut."""

from dataclasses import dataclass

from api.context import Context
from api.detokenizer import Detokenizer
from api.intake import Prepared
from api.stops import StopFilter


@dataclass(frozen=True, slots=True)
class Text:
    """What some tokens added. Text may lag behind tokens: a character or a stop string may be unfinished."""

    answer: str = ""
    reasoning: str = ""


class TextStream:
    """Feed token by token; after a stop string :attr:`stopped` is set and nothing more comes."""

    def __init__(self, context: Context, prepared: Prepared) -> None:
        prompt = prepared.request.prompt
        thinking = prepared.thinking
        self._tokenizer = context.tokenizer
        self._stops = prepared.stops
        self._min_tokens = prepared.request.sampling.min_tokens
        self._count = 0
        self._markers = (thinking.start, thinking.end) if prepared.chat else (None, None)
        self._thinking = prepared.chat and thinking.opened_by(prompt)
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
