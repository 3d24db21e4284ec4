"""A worker's verbs on Redis."""

from collections.abc import Sequence
from typing import Any

from common.bus.interface import START, Cursor, Wake
from common.bus.redis_client import COMMAND_TIMEOUT_S, RedisClient, following, log
from common.bus.redis_wire import controls_from
from common.codec import decode, encode, pack_tokens
from common.errors import CodecError
from common.keys import Keys
from common.messages import End, Frame, Stage, State, Work, WorkerState

READ_COUNT = 64
FRAMES_PER_CALL = 256

CORRUPT = End(State.FAILED, "corrupt")


class RedisWorker(RedisClient):
    """See :class:`common.bus.interface.WorkerBus`; one object serves one process, and so one worker at a time."""

    def __init__(self, url: str, keys: Keys, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        super().__init__(url, keys, timeout_s)
        self._taken: dict[str, Cursor] = {}

    async def beat(self, state: WorkerState, ttl_s: float) -> bool:
        """See the interface."""
        return bool(await self._run("beat", state.id, encode(state), max(1, round(ttl_s * 1000))))

    async def leave(self, worker: str) -> None:
        """See the interface."""
        await self._command("DEL", self.keys.worker(worker))

    async def emit(self, worker: str, frames: Sequence[Frame], busy_until_s: float = 0.0) -> Sequence[bool]:
        """See the interface."""
        accepted: list[bool] = []
        for start in range(0, len(frames), FRAMES_PER_CALL):
            arguments = [part for frame in frames[start : start + FRAMES_PER_CALL] for part in _parts(frame)]
            accepted += [bool(item) for item in await self._run("emit", worker, busy_until_s, *arguments)]
        return accepted

    async def hand_off(self, worker: str, work: Work) -> bool:
        """See the interface."""
        target = work.decision.decode_worker
        if target is None:
            raise ValueError("a hand-off needs a decode worker")
        return bool(await self._run("hand_off", worker, target, work.request.id, work.attempt, encode(work)))

    async def wait(self, worker: str, after: Cursor, block_s: float, room: int = 0) -> Wake:
        """See the interface; work stays in its stream until the next call, so a lost answer loses nothing.

        It is taken by a script that is sent right behind the blocking read and runs when that ends.
        """
        control = self.keys.control(worker)
        if room <= 0:
            found, answers = await self._follow({control: after}, block_s, READ_COUNT, forget=control), {}
        else:
            cursors = {stage: self._taken.get(self.keys.work(stage, worker), START) for stage in Stage}
            streams = {control: after} | {self.keys.work(stage, worker): cursor for stage, cursor in cursors.items()}
            places = [part for stage, cursor in cursors.items() for part in (stage.value, cursor, following(cursor))]
            found, answer = await self._follow_and_run(
                streams, block_s, READ_COUNT, control, "take", worker, room, *places
            )
            answers = dict(zip(Stage, answer, strict=True))
        work = [(stage, one) for stage, (_, blobs) in answers.items() for one in await self._works_of(blobs)]
        self._taken |= {self.keys.work(stage, worker): reached.decode() for stage, (reached, _) in answers.items()}
        entries = found.get(control, [])
        return Wake(entries[-1][0] if entries else after, controls_from(entries), work)

    async def _works_of(self, taken: Sequence[Any]) -> Sequence[Work]:
        work = []
        for request_id, blob in taken:
            try:
                work.append(decode(blob, Work))
            except CodecError as error:
                name = request_id.decode(errors="replace")
                log.warning("work %s can't be read: %s", name, error)
                await self._run("end", request_id, "", CORRUPT.state.value, encode(CORRUPT), CORRUPT.reason)
        return work


def _parts(frame: Frame) -> Sequence[Any]:
    notes = [part for name, value in frame.notes.items() for part in (f"n:{name}", float(value))]
    return (
        frame.id,
        frame.attempt,
        frame.position,
        frame.time_s,
        pack_tokens(frame.tokens),
        frame.end.state.value if frame.end else "",
        encode(frame.end) if frame.end else b"",
        encode(frame),
        len(notes),
        *notes,
    )
