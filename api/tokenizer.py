"""Text to token ids and back, with the model's own tokenizer; safe to call from several threads."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers import AutoTokenizer

from common.codec import Tokens

THREAD_OVER_CHARS = 2_000
"""Longer texts are tokenized in a thread: this many take about a millisecond of the event loop."""


class TemplateError(ValueError):
    """The model has no chat template, or its template refuses these messages."""


class TextTooLong(ValueError):
    """A text can't fit the given number of tokens, whatever its tokens are."""


class Tokenizer:
    """A Hugging Face tokenizer without its mutable state (padding, truncation)."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._rust = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = tokenizer.get_vocab()
        self.size = max(vocabulary.values(), default=0) + 1
        self._longest_chars = max((len(token) for token in vocabulary), default=1)
        self._ids: Mapping[str, int] = vocabulary

    @classmethod
    def load(cls, model: str, trust_remote_code: bool = False) -> "Tokenizer":
        """By Hugging Face name or folder; raises OSError or ValueError as transformers does."""
        return cls(AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code))

    def token_id(self, marker: str) -> int | None:
        """Id of a marker such as ``<think>`` if it is a single token."""
        return self._ids.get(marker)

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be rendered."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    async def encode(self, text: str, max_tokens: int, add_special_tokens: bool = True) -> Tokens:
        """Token ids; raises TextTooLong without tokenizing what can't fit ``max_tokens``."""
        if len(text) > max_tokens * self._longest_chars:
            raise TextTooLong
        if len(text) > THREAD_OVER_CHARS:
            return await asyncio.to_thread(self.encode_now, text, add_special_tokens)
        return self.encode_now(text, add_special_tokens)

    def encode_now(self, text: str, add_special_tokens: bool = True) -> Tokens:
        """Token ids, in this thread."""
        if self._rust is not None:
            return tuple(self._rust.encode(text, add_special_tokens=add_special_tokens).ids)
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids without special tokens."""
        if self._rust is not None:
            return str(self._rust.decode(list(tokens), skip_special_tokens=True))
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def render(self, messages: Sequence[Mapping[str, Any]], **options: bool) -> str:
        """A chat as the prompt's text, the assistant's turn opened; raises TemplateError."""
        if not self.has_chat_template:
            raise TemplateError("the model has no chat template")
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **options
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise TemplateError("the model's chat template refuses these messages") from error
        return str(text)


THINK_START, THINK_END = "<think>", "</think>"
