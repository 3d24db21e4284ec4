"""An inference engine, as a worker sees it.

Two implementations: vLLM (:mod:`common.engine.vllm`) and a simulated one (:mod:`common.engine.simulated`) that
sleeps for the latency model's time; one contract suite holds both to this page.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from common.codec import Tokens
from common.latency_model import LatencyModel
from common.messages import HandOff, Sampling, StepSample, kind_of
from common.slo import Objective


@dataclass(frozen=True, slots=True)
class Job:
    """One generation.

    ``generated`` are output tokens that exist already; the engine continues after them and never repeats them.
    ``hand_off`` says where the KV of prompt and generated tokens can be pulled. With ``keep_kv`` the job ends
    after one token and its KV waits for a consumer. ``objective`` is the promise, None where there is none;
    ``first_token_s`` is when the first of ``generated`` came, if known; ``thinking_start`` and ``thinking_end`` part
    the stages (:func:`common.slo.thinking_tokens`). Of what is not promised the earliest ``arrival_s`` goes first.
    ``drafts`` fixes how far the engine speculates, for measurements; None leaves that to it.
    """

    id: str
    prompt: Tokens
    sampling: Sampling
    generated: Tokens = ()
    hand_off: HandOff | None = None
    keep_kv: bool = False
    tier: str = ""
    objective: Objective | None = None
    arrival_s: float | None = None
    first_token_s: float | None = None
    thinking_start: int | None = None
    thinking_end: int | None = None
    drafts: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a prompt that was computed: its tokens, the tokens in KV after it, and when it ended (epoch)."""

    tokens: int
    computed: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Output:
    """New tokens of a job. The last output of a job has ``finish`` (``stop`` or ``length``).

    ``hand_off`` is set on the last output of a job with ``keep_kv`` unless it finished. ``notes`` are
    measurements (``kv_transfer_ms``, ``kv_bytes``, ``cached_tokens``, ``scheduled_s``, ``recomputed``), and
    ``chunks`` how the prompt was computed; both come with the first output.
    """

    tokens: Tokens
    finish: str | None = None
    hand_off: HandOff | None = None
    notes: Mapping[str, float] = field(default_factory=dict)
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine is, known once it has started. ``fingerprint`` must be equal for KV to be exchanged.

    ``max_drafts`` is how many tokens it drafts at most, 0 where it does not speculate; ``machine`` what it computes on.
    """

    fingerprint: str
    model: str
    vocab_size: int
    max_model_len: int
    block_size: int
    total_blocks: int
    max_seqs: int
    max_batch_tokens: int
    max_drafts: int = 0
    machine: str = "unknown"

    @property
    def kind(self) -> str:
        """Engines of one kind share a latency model."""
        return kind_of(self.fingerprint, self.machine)


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine is doing now; ``policy_errors`` counts steps that were formed without the batch policy.

    ``draft_tokens`` is how many tokens a decoder was seen to make of an iteration in which it has drafts, 1 where none
    were verified. ``slowdown`` is how much longer than ``latency`` says its newest steps took.
    """

    running: int
    running_tokens: int
    waiting: int
    waiting_tokens: int
    free_blocks: int
    step_ms: float
    latency: LatencyModel
    policy_errors: int = 0
    draft_tokens: float = 1.0
    slowdown: float = 1.0


class Engine(Protocol):
    """Called by one worker from one event loop.

    ``latency`` is what :meth:`load` reports, settable when a better one is known. After :meth:`start`, any number
    of :meth:`generate` run at once; cancelling one (or closing its iterator) aborts
    the job and frees its KV within a second. EngineDead from any verb is final.
    """

    latency: LatencyModel

    async def start(self) -> Facts:
        """Load the model and be ready for work; raises EngineError."""

    def generate(self, job: Job) -> AsyncIterator[Output]:
        """Run a job; raises EngineRefused for bad input and EngineDead when the engine has died.

        A hand-off that is expired, foreign or lost is recomputed, and noted as ``recomputed``.
        """

    async def release(self, hand_off: HandOff) -> None:
        """Free the KV of a hand-off of this engine that nobody will pull."""

    async def introduce(self, peer: Mapping[str, Any]) -> None:
        """Shake hands with another engine's :meth:`address` ahead of the first pull, where that helps."""

    def address(self) -> Mapping[str, Any]:
        """What a peer needs to pull from here."""

    def load(self) -> Load:
        """Present load; cheap, called with every heartbeat."""

    def busy_until_s(self) -> float:
        """When the last iteration that was begun is expected to end, epoch seconds; 0 where that is unknown. Cheap."""

    def take_samples(self) -> list[StepSample]:
        """Batches run since the last call, newest last, with their measured seconds; bounded, the oldest go."""

    async def drain(self) -> None:
        """Return once no job is left; the caller starts none meanwhile."""

    async def close(self) -> None:
        """Stop the engine and free everything."""
