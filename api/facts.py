"""What the api must know of the model, read from its configuration files without loading it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from api.thinking import Thinking
from api.tokenizer import THINK_END, THINK_START, Tokenizer
from common.settings import Settings

_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class Facts:
    """``names`` are what a client may call the model, the shown one first; ids are None where not one token.

    ``created_s`` is when this process learned of the model.
    """

    names: tuple[str, ...]
    max_model_len: int
    vocab_size: int
    thinking_start: int | None
    thinking_end: int | None
    created_s: int = 0

    @property
    def thinking(self) -> Thinking:
        """Tokens around the model's thinking."""
        return Thinking(self.thinking_start, self.thinking_end)

    @property
    def served_name(self) -> str:
        """The name that clients see."""
        return self.names[0]


def load_facts(settings: Settings, tokenizer: Tokenizer) -> Facts:
    """Raises OSError if there is no configuration, ValueError if settings are missing or do not fit the model."""
    raw, _ = PretrainedConfig.get_config_dict(settings.model, trust_remote_code=settings.trust_remote_code)
    config: Mapping[str, Any] = {**raw.get("text_config", {}), **raw}
    lengths = [config[key] for key in _LENGTH_KEYS if isinstance(config.get(key), int)]
    if settings.max_model_len is not None:
        lengths = [settings.max_model_len]
    if not lengths:
        raise ValueError(f"{settings.model}: no model length in its configuration; set SLOS_MAX_MODEL_LEN")
    vocab_size = config.get("vocab_size")
    shown = settings.served_model_name or Path(settings.model).name
    return Facts(
        names=tuple(dict.fromkeys((shown, settings.model))),
        max_model_len=min(lengths),
        vocab_size=vocab_size if isinstance(vocab_size, int) else tokenizer.size,
        thinking_start=_marker(tokenizer, settings.thinking_start, THINK_START),
        thinking_end=_marker(tokenizer, settings.thinking_end, THINK_END),
        created_s=int(time.time()),
    )


def _marker(tokenizer: Tokenizer, wanted: str | None, usual: str) -> int | None:
    found = tokenizer.token_id(wanted or usual)
    if wanted is not None and found is None:
        raise ValueError(f"{wanted!r} is not one token of this model; see SLOS_THINKING_START and SLOS_THINKING_END")
    return found
