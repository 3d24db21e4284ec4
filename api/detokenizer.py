"""Token ids to text as they arrive, never cutting a character."""

from collections.abc import Sequence

from api.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
MAX_PENDING = 32
"""An unfinished character has at most four bytes, and so tokens; more pending than this are no text at all."""

CONTEXT = 6
"""Tokens of the prompt that decide how the first output token is joined to it."""


class Detokenizer:
    """Decodes a window that starts where the text was last complete, as most tokenizers join tokens by context.

    The pieces and :meth:`flush` together equal the text of all tokens decoded at once.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT:])
        self._known = tokenizer.decode(self._window) if self._window else ""
        if self._known.endswith(REPLACEMENT):
            self._window, self._known = [], ""
        self._start = len(self._window)

    def feed(self, token: int) -> str:
        """New complete text, empty while a character is unfinished."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._start < MAX_PENDING:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What an unfinished character stands as."""
        return self._advance(self._tokenizer.decode(self._window)) if len(self._window) > self._start else ""

    def _advance(self, text: str) -> str:
        new = text[len(self._known) :]
        tail = self._window[self._start :]
        known = self._tokenizer.decode(tail)
        if new or known:
            self._window, self._known, self._start = tail, known, len(tail)
        else:  # special tokens have no text: the context before them still counts
            del self._window[self._start :]
        return new
