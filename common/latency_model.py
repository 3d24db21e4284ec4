"""How long a batch takes: the model that every plan is made with.

``T = max_l(k_token*tokens + k_draft*draft_steps + base) + k_seq*seqs + k_kv*kv_tokens + k_attn*attended``

The maximum of linear pieces is the paper's roofline (SLOs-Serve, section 4.1); the additive terms are decode's
per-sequence and KV-reading costs and prefill's attention, which fit measured engines better.
"""

import math
from dataclasses import dataclass, fields

from common.errors import ProfileError


@dataclass(frozen=True, slots=True)
class Piece:
    """One linear piece of the roofline: seconds per token, per draft step, and per batch."""

    k_token: float
    k_draft: float
    base: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What one engine iteration computes.

    ``kv_tokens`` is the context read by decodes; ``attended`` is ``sum(n*(context + n/2))`` over prefill chunks
    of n tokens.
    """

    tokens: int
    seqs: int = 0
    kv_tokens: int = 0
    attended: float = 0.0
    draft_steps: int = 0


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """Coefficients in seconds; raises ProfileError if any is negative, not finite, or all are zero."""

    pieces: tuple[Piece, ...]
    k_seq: float = 0.0
    k_kv: float = 0.0
    k_attn: float = 0.0

    def __post_init__(self) -> None:
        values = [getattr(piece, field.name) for piece in self.pieces for field in fields(piece)]
        values += [self.k_seq, self.k_kv, self.k_attn]
        if not self.pieces or any(not math.isfinite(value) or value < 0 for value in values):
            raise ProfileError("latency coefficients must be finite and not negative")
        if max(piece.k_token for piece in self.pieces) <= 0:
            raise ProfileError("a latency model needs a positive cost per token")

    def scaled(self, factor: float) -> "LatencyModel":
        """The model of an engine that takes ``factor`` times as long for everything."""
        pieces = tuple(Piece(p.k_token * factor, p.k_draft * factor, p.base * factor) for p in self.pieces)
        return LatencyModel(pieces, self.k_seq * factor, self.k_kv * factor, self.k_attn * factor)

    def seconds(self, batch: Batch) -> float:
        """Predicted duration of a batch, in seconds."""
        linear = max(p.k_token * batch.tokens + p.k_draft * batch.draft_steps + p.base for p in self.pieces)
        return linear + self.k_seq * batch.seqs + self.k_kv * batch.kv_tokens + self.k_attn * batch.attended

    def tokens_within(self, seconds: float, seqs: int = 0, kv_tokens: int = 0) -> int:
        """Most tokens that a batch of at most ``seconds`` holds, ``t2b`` in the paper; attention is not counted."""
        room = seconds - self.k_seq * seqs - self.k_kv * kv_tokens
        return max(0, math.floor(min((room - p.base) / p.k_token for p in self.pieces if p.k_token > 0)))

    def prefill_seconds(self, prompt_tokens: int, max_batch_tokens: int, cached_tokens: int = 0) -> float:
        """Zero-load time to prefill a prompt in chunks of at most ``max_batch_tokens``."""
        total, done = 0.0, cached_tokens
        while done < prompt_tokens:
            chunk = min(max_batch_tokens, prompt_tokens - done)
            total += self.seconds(Batch(tokens=chunk, seqs=1, attended=chunk * (done + chunk / 2)))
            done += chunk
        return total

    def decode_seconds(self, seqs: int, kv_tokens: int) -> float:
        """Duration of one iteration that decodes one token for each of ``seqs`` sequences."""
        return self.seconds(Batch(tokens=seqs, seqs=seqs, kv_tokens=kv_tokens))
