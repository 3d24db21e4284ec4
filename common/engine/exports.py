"""What the engine core tells the worker each step, through shared memory: a state record and a ring of events.

The other way goes the latency model that the core plans with. A write costs a few microseconds and never waits for
the reader. State and model are guarded by sequence locks, an event by its serial number; a reader that is too slow
loses the oldest events.
"""

import mmap
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from enum import IntEnum
from pathlib import Path

from common.latency_model import LatencyModel, Piece

_STATE = struct.Struct("<Q13d")
_HEAD = struct.Struct("<Q")
_EVENT = struct.Struct("<QQQ6d")
_HEAD_AT = _STATE.size
_EVENTS_AT = 128
_SLOTS = 4096
_MODEL_AT = _EVENTS_AT + _SLOTS * _EVENT.size
_PIECES = 8
_MODEL = struct.Struct(f"<{3 + 3 * _PIECES}d")
_BYTES = _MODEL_AT + 2 * _HEAD.size + _MODEL.size
_ATTEMPTS = 1000


class Kind(IntEnum):
    """What an event reports; ``key`` is the job's number, 0 for a step."""

    STEP = 1
    """tokens, seqs, kv_tokens, attended, draft_steps, seconds"""
    SCHEDULED = 2
    """time in epoch seconds at which a job was first part of a batch"""
    PULL_STARTED = 3
    """time in epoch seconds at which the consumer's scheduler ordered the pull"""
    PULLED = 4
    """duration in ms from the order to the moment when the scheduler saw the pull complete, and bytes of KV pulled"""
    PULL_FAILED = 5
    """the pull failed after so many ms; the KV is recomputed"""
    PULL_LATE = 6
    """the hand-off's lease was over or about to end; the KV is recomputed"""
    CHUNK = 7
    """tokens of a prefill chunk that was computed, tokens in KV after it, time in epoch seconds"""


@dataclass(frozen=True, slots=True)
class CoreState:
    """The engine core as of its last step; ``held`` are finished requests whose KV waits to be pulled.

    ``policy_errors`` counts steps that stock vLLM scheduled because the batch policy failed, ``preempted`` what the
    policy has preempted, and ``plan_s`` is how long it took last. ``draft_tokens`` is how many tokens verifying drafts
    gives, a faded mean; 0 if the scheduler doesn't say.
    """

    running: float = 0
    running_tokens: float = 0
    waiting: float = 0
    waiting_tokens: float = 0
    free_blocks: float = 0
    held: float = 0
    step_s: float = 0
    nixl_port: float = 0
    policy_errors: float = 0
    preempted: float = 0
    plan_s: float = 0
    draft_tokens: float = 0
    busy_until_s: float = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One event; the meaning of ``values`` is told at its :class:`Kind`."""

    kind: int
    key: int
    values: tuple[float, ...]


class Writer:
    """The engine core's side; one process writes."""

    def __init__(self, path: str) -> None:
        self._map = _mapped(path)
        self._state = CoreState()
        self._sequence = 0
        self._serial = 0
        self._model = 0

    def model(self) -> LatencyModel | None:
        """The latency model that the worker told last; None if there is none since the last call."""
        before, count = struct.unpack_from("<QQ", self._map, _MODEL_AT)
        if before == self._model or before % 2:
            return None
        values = _MODEL.unpack_from(self._map, _MODEL_AT + 2 * _HEAD.size)
        if _HEAD.unpack_from(self._map, _MODEL_AT)[0] != before:
            return None
        self._model = before
        pieces = tuple(Piece(*values[3 + 3 * n : 6 + 3 * n]) for n in range(count))
        return LatencyModel(pieces, *values[:3])

    def update(self, **changes: float) -> None:
        """Replace fields of the state; see :class:`CoreState`."""
        self._state = replace(self._state, **changes)
        self._sequence += 2
        _HEAD.pack_into(self._map, 0, self._sequence - 1)
        _STATE.pack_into(self._map, 0, self._sequence - 1, *astuple(self._state))
        _HEAD.pack_into(self._map, 0, self._sequence)

    def event(self, kind: Kind, key: int, *values: float) -> None:
        """Append an event of at most six values."""
        self._serial += 1
        at = _EVENTS_AT + (self._serial % _SLOTS) * _EVENT.size
        padded = (*values, *[0.0] * (6 - len(values)))
        _EVENT.pack_into(self._map, at, 0, kind, key, *padded)
        _HEAD.pack_into(self._map, at, self._serial)
        _HEAD.pack_into(self._map, _HEAD_AT, self._serial)


class Reader:
    """The worker's side: makes the file, which :meth:`unlink` removes once the writer has it open."""

    def __init__(self) -> None:
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - memory, not a shared temp file
        handle, self.path = tempfile.mkstemp(prefix="slos-engine-", dir=folder)
        os.ftruncate(handle, _BYTES)
        os.close(handle)
        self._map = _mapped(self.path)
        self._serial = 0
        self._told = 0

    def tell(self, model: LatencyModel) -> None:
        """Give the core the latency model to plan with; of a roofline of more than eight pieces the first eight."""
        pieces = model.pieces[:_PIECES]
        values = [value for piece in pieces for value in (piece.k_token, piece.k_draft, piece.base)]
        padding = [0.0] * (3 * _PIECES - len(values))
        self._told += 2
        struct.pack_into("<QQ", self._map, _MODEL_AT, self._told - 1, len(pieces))
        _MODEL.pack_into(
            self._map, _MODEL_AT + 2 * _HEAD.size, model.k_seq, model.k_kv, model.k_attn, *values, *padding
        )
        _HEAD.pack_into(self._map, _MODEL_AT, self._told)

    def unlink(self) -> None:
        """Remove the name; both mappings stay."""
        Path(self.path).unlink(missing_ok=True)

    def state(self) -> CoreState:
        """The last complete state; a writer that died in a write leaves a torn one, which is returned as it is."""
        values: tuple[float, ...] = ()
        for _ in range(_ATTEMPTS):
            before, *values = _STATE.unpack_from(self._map, 0)  # type: ignore[assignment]
            if before % 2 == 0 and _HEAD.unpack_from(self._map, 0)[0] == before:
                break
        return CoreState(*values)

    def events(self) -> Iterator[Event]:
        """Events since the last call, oldest first."""
        (head,) = _HEAD.unpack_from(self._map, _HEAD_AT)
        for serial in range(max(self._serial + 1, head - _SLOTS + 2), head + 1):
            at = _EVENTS_AT + (serial % _SLOTS) * _EVENT.size
            found, kind, key, *values = _EVENT.unpack_from(self._map, at)
            if found == serial == _HEAD.unpack_from(self._map, at)[0]:
                yield Event(kind, key, tuple(values))
        self._serial = head


def _mapped(path: str) -> mmap.mmap:
    with Path(path).open("r+b") as file:
        return mmap.mmap(file.fileno(), _BYTES)
