"""What workers say of themselves and of their engines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.codec import message
from common.latency_model import LatencyModel
from common.messages.work import Stage


@message
@dataclass(frozen=True, slots=True)
class WorkerState:
    """worker -> admission: registration and heartbeat in one; an id is never used by two processes.

    ``ready`` says that its engine runs, ``known`` that a leader has told it so: the pipeline serves only then.

    ``fingerprint`` names everything that must be equal for KV to be exchanged (model, engine version, block
    size, dtype). ``latency`` is the worker's present latency model, ``address`` where peers reach its KV.

    ``pull_s_per_token`` is how many seconds it was seen to take to pull the KV of a token (0: not known yet), and
    ``draft_tokens`` how many tokens a decoder was seen to make of an iteration in which it has drafts (1: without any).
    ``slowdown`` is how much longer than ``latency`` says its newest steps took, ``machine`` what it computes on.
    """

    id: str
    prefers: Stage
    may: tuple[Stage, ...]
    fingerprint: str
    model: str
    max_model_len: int
    block_size: int
    total_blocks: int
    free_blocks: int
    max_seqs: int
    max_batch_tokens: int
    queued: int
    queued_tokens: int
    running: int
    running_tokens: int
    step_ms: float
    latency: LatencyModel
    draining: bool
    ready: bool
    url: str
    started_s: float
    beat_s: float
    address: Mapping[str, Any] = field(default_factory=dict)
    known: bool = False
    pull_s_per_token: float = 0.0
    draft_tokens: float = 1.0
    slowdown: float = 1.0
    machine: str = "unknown"

    @property
    def kind(self) -> str:
        """Workers of one kind share a latency model."""
        return kind_of(self.fingerprint, self.machine)


def kind_of(fingerprint: str, machine: str) -> str:
    """Names engines that take equally long for a batch: what they run, and on what."""
    return f"{fingerprint}@{machine}"


@dataclass(frozen=True, slots=True)
class StepSample:
    """One measured engine iteration: the fields of :class:`common.latency_model.Batch` and its duration."""

    tokens: int
    seqs: int
    kv_tokens: int
    attended: float
    draft_steps: int
    seconds: float


@message
@dataclass(frozen=True, slots=True)
class StepSamples:
    """worker -> calibration: measured steps since the worker's last message."""

    worker: str
    samples: tuple[StepSample, ...]


@message
@dataclass(frozen=True, slots=True)
class Profile:
    """calibration -> workers and admission: the latency model of all engines of one kind (:func:`kind_of`).

    ``base`` is what was measured before any refit, and what unmeasured directions stay near; ``error`` is the
    median relative error of ``latency`` on the ``samples`` newest steps.
    """

    kind: str
    base: LatencyModel
    latency: LatencyModel
    samples: int
    error: float
    fitted_s: float
