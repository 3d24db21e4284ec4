"""What the engine core reports about jobs and steps, sorted for the worker's process."""

import time
from collections import deque
from collections.abc import Callable

from common.engine.exports import Event, Kind, Reader
from common.engine.interface import Chunk
from common.messages import StepSample

_SAMPLES = 4096
_CHUNKS = 64
_PRIVATE = "pull_"


class Observations:
    """Notes by job number, and step samples; both from the ring, which is read whenever something is asked."""

    def __init__(self, reader: Reader, on_step: Callable[[StepSample], None] = lambda _: None) -> None:
        self._reader = reader
        self._on_step = on_step
        self._notes: dict[int, dict[str, float]] = {}
        self._chunks: dict[int, deque[Chunk]] = {}
        self._samples: deque[StepSample] = deque(maxlen=_SAMPLES)

    def __len__(self) -> int:
        return len(self._notes)

    def begin(self, key: int) -> None:
        """Take notes on a job from now on."""
        self._notes[key] = {}
        self._chunks[key] = deque(maxlen=_CHUNKS)

    def end(self, key: int) -> None:
        """Forget a job."""
        del self._notes[key], self._chunks[key]

    def recomputed(self, key: int) -> None:
        """Note that a job's KV is computed here, although there was a hand-off; what the pull did is void."""
        self._notes[key].clear()
        self._notes[key]["recomputed"] = 1.0

    def of(self, key: int) -> dict[str, float]:
        """A job's notes, fit for its output."""
        self.collect()
        return {name: value for name, value in self._notes[key].items() if not name.startswith(_PRIVATE)}

    def chunks(self, key: int) -> tuple[Chunk, ...]:
        """How a job's prompt was computed, the newest 64 chunks."""
        return tuple(self._chunks[key])

    def pulling_s(self, key: int) -> float | None:
        """For how long a job's pull has been under way, None if none is."""
        self.collect()
        notes = self._notes[key]
        if "pull_seen_s" not in notes or "kv_transfer_ms" in notes or "recomputed" in notes:
            return None
        return time.monotonic() - notes["pull_seen_s"]

    def take_samples(self) -> list[StepSample]:
        """Step samples since the last call."""
        self.collect()
        taken = list(self._samples)
        self._samples.clear()
        return taken

    def collect(self) -> None:
        """Read the ring; to be called now and then, so that it does not overflow."""
        for event in self._reader.events():
            if event.kind == Kind.STEP:
                tokens, seqs, kv_tokens, attended, drafts, seconds = event.values
                sample = StepSample(int(tokens), int(seqs), int(kv_tokens), attended, int(drafts), seconds)
                self._samples.append(sample)
                self._on_step(sample)
            elif event.key in self._chunks and event.kind == Kind.CHUNK:
                tokens, computed, time_s = event.values[:3]
                self._chunks[event.key].append(Chunk(int(tokens), int(computed), time_s))
            elif event.key in self._notes:
                _note(self._notes[event.key], event)


def _note(notes: dict[str, float], event: Event) -> None:
    if event.kind == Kind.SCHEDULED:
        notes.setdefault("scheduled_s", event.values[0])
    elif event.kind == Kind.PULL_STARTED:
        notes["pull_seen_s"] = time.monotonic()
    elif event.kind == Kind.PULLED and "recomputed" not in notes:
        notes["kv_transfer_ms"], notes["kv_bytes"] = event.values[:2]
    elif event.kind in (Kind.PULL_FAILED, Kind.PULL_LATE):
        notes["recomputed"] = 1.0
        if event.kind == Kind.PULL_LATE:
            notes["lease_expired"] = 1.0
