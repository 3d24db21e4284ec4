"""One piece of work on one engine: from the work stream to its last frame or its hand-off."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from common.codec import Tokens
from common.engine.interface import Chunk, Engine, Job, Output
from common.messages import End, Frame, HandOff, Stage, State, Verdict, Work
from common.slo import Objective, slack_s
from common.worker.outbox import Outbox

LEASE_SHARE = 1 / 3
"""A hand-off older than this share of its lease is prefilled again: its KV might expire before it is pulled."""

DUE_SHARE = 2.0
"""A token that is due within so many waits does not wait: its way to the client takes time as well."""


@dataclass(slots=True)
class JobTimes:
    """What a span needs to know, in epoch seconds."""

    taken_s: float
    token_times_s: list[float] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    chunks: tuple[Chunk, ...] = ()
    end: End | None = None
    dropped_hand_off: bool = False


class WorkJob:
    """Runs one :class:`Work` for the worker ``worker``; ``times`` tells what happened, also after a failure.

    Tokens that are not due yet may wait ``linger_s`` for others to travel with.
    """

    def __init__(
        self,
        work: Work,
        stage: Stage,
        worker: str,
        engine: Engine,
        outbox: Outbox,
        clock: Callable[[], float] = time.time,
        linger_s: float = 0.0,
    ) -> None:
        self.work = work
        self.stage = stage
        self.times = JobTimes(taken_s=clock())
        self._worker = worker
        self._engine = engine
        self._outbox = outbox
        self._clock = clock
        self._generated = work.generated
        self._objective = objective_of(work)
        self._linger_s = linger_s

    @property
    def generated(self) -> Tokens:
        """All output tokens so far, those of other workers included."""
        return self._generated

    @property
    def stays(self) -> bool:
        """Whether the request is kept to its end, with no hand-off after the first token."""
        return self.stage is Stage.DECODE or self.work.decision.decode_worker == self._worker

    @property
    def pulled_s(self) -> float | None:
        """How long its hand-off took to be pulled, None if none was."""
        notes = self.times.notes
        if self.work.hand_off is None or "recomputed" in notes or "kv_transfer_ms" not in notes:
            return None
        return notes["kv_transfer_ms"] / 1e3

    async def run(self) -> Work | None:
        """Generate and emit; returns the work to hand off, None when the request has ended here."""
        hand_off = self._usable_hand_off()
        async for output in self._engine.generate(self._job(hand_off)):
            frame = self._frame(output)
            sent = self._outbox.put(frame, self._wait_s(frame))
            if output.hand_off is not None:
                await sent
                return self._next_work(output.hand_off)
        if self.times.end is None:
            raise RuntimeError("the engine ended a job without saying why")
        return None

    def fail(self, reason: str, detail: str) -> None:
        """End the request as failed."""
        self.times.end = End(State.FAILED, reason, detail)
        request, position = self.work.request, len(self._generated)
        self._outbox.put(Frame(request.id, self.work.attempt, position, (), self._clock(), self.times.end))

    def _usable_hand_off(self) -> HandOff | None:
        hand_off = self.work.hand_off
        if hand_off is None:
            return None
        lease_s = hand_off.expires_s - hand_off.produced_s
        if self._clock() > hand_off.produced_s + lease_s * LEASE_SHARE:
            self.times.dropped_hand_off = True
            return None
        return hand_off

    def _job(self, hand_off: HandOff | None) -> Job:
        request = self.work.request
        return Job(
            id=f"{request.id}-{self.work.attempt}-{self.stage.value}",
            prompt=request.prompt,
            sampling=request.sampling,
            generated=self.work.generated,
            hand_off=hand_off,
            keep_kv=not self.stays,
            tier=request.tier,
            objective=self._objective,
            arrival_s=request.arrival_s,
            first_token_s=self.work.first_token_s,
            thinking_start=request.thinking_start,
            thinking_end=request.thinking_end,
        )

    def _frame(self, output: Output) -> Frame:
        now_s = self._clock()
        request, position = self.work.request, len(self._generated)
        self._generated += output.tokens
        self.times.token_times_s.extend([now_s] * len(output.tokens))
        self.times.chunks += output.chunks
        if output.finish is not None:
            self.times.end = End(State.DONE, output.finish)
        return Frame(
            id=request.id,
            attempt=self.work.attempt,
            position=position,
            tokens=output.tokens,
            time_s=now_s,
            end=self.times.end,
            notes=self._notes(output, now_s, first=len(self.times.token_times_s) == len(output.tokens)),
        )

    def _wait_s(self, frame: Frame) -> float:
        """Nothing for a first or last token, for one that is due, and where the next comes later anyhow."""
        times = self.times.token_times_s
        new = len(frame.tokens)
        if frame.end is not None or frame.notes or len(times) <= new or times[-1] - times[-new - 1] > self._linger_s:
            return 0.0
        if self._objective is None:
            return self._linger_s
        tpot_s = self._objective.tightest_tpot_s
        start_s = max(self._objective.prefill_due_s, self.work.first_token_s or times[0])
        due_s = start_s + tpot_s * (len(self._generated) - new)
        return self._linger_s if slack_s(due_s, frame.time_s) > DUE_SHARE * self._linger_s else 0.0

    def _notes(self, output: Output, now_s: float, first: bool) -> dict[str, float]:
        notes = dict(output.notes)
        if first:
            notes[f"{self.stage.value}_taken_s"] = self.times.taken_s
            notes[self._first_token_note()] = now_s
        if self.times.dropped_hand_off and first:
            notes["hand_off_dropped"] = 1.0
        if self.times.end is not None:
            notes["ended_s"] = now_s
        self.times.notes.update(notes)
        return notes

    def _first_token_note(self) -> str:
        if self.work.generated:
            return "decode_first_token_s" if self.stage is Stage.DECODE else "resumed_first_token_s"
        return "first_token_s"

    def _next_work(self, hand_off: HandOff) -> Work:
        first_token_s = self.times.token_times_s[0] if not self.work.generated else self.work.first_token_s
        return replace(self.work, generated=self._generated, hand_off=hand_off, first_token_s=first_token_s)


def objective_of(work: Work) -> Objective | None:
    """The promise that was made, None if nothing was."""
    decision = work.decision
    if decision.verdict is not Verdict.ADMITTED or decision.ttft_ms is None or decision.tpot_ms is None:
        return None
    thinking_ms = decision.thinking_tpot_ms
    return Objective(
        arrival_s=work.request.arrival_s,
        ttft_s=decision.ttft_ms / 1e3,
        tpot_s=decision.tpot_ms / 1e3,
        thinking_tpot_s=None if thinking_ms is None else thinking_ms / 1e3,
    )
