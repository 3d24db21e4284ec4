"""Token streams and the windows cut from them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from bench.tiny_model.chats import Message, make_chats
from bench.tiny_model.corpus import Split, shuffled
from bench.tiny_model.tokenizer import BOS, EOS

CHAT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Streams:
    """Two flat int64 token streams of whole documents, each document opened by `<s>`."""

    sources: torch.Tensor
    chats: torch.Tensor


def encode_split(split: Split, tokenizer: PreTrainedTokenizerFast, seed: int, variants: int) -> Streams:
    """Tokenize all files and `variants` conversations per entry, both in an order drawn from `seed`."""
    sources = (f"{BOS}{text}{EOS}" for text in shuffled(split.sources, seed))
    chats = (render(chat, tokenizer) for chat in make_chats(split.entries, seed, variants))
    return Streams(encode_all(sources, tokenizer), encode_all(chats, tokenizer))


def render(chat: list[Message], tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.apply_chat_template(chat, tokenize=False))


def encode_all(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return torch.tensor([token for encoding in encodings for token in encoding.ids], dtype=torch.int64)


def draw_windows(streams: Streams, rows: int, window: int, generator: torch.Generator) -> torch.Tensor:
    """`rows` x `window` tokens from random places, `CHAT_SHARE` of the rows from conversations."""
    of_chats = round(rows * CHAT_SHARE)
    return torch.cat(
        [
            windows_of(streams.chats, of_chats, window, generator),
            windows_of(streams.sources, rows - of_chats, window, generator),
        ]
    )


def windows_of(stream: torch.Tensor, rows: int, window: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(0, len(stream) - window + 1, (rows, 1), generator=generator)
    return stream[starts + torch.arange(window)]
