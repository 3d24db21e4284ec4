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

    async def take(self, stage: Stage, worker: str, count: int) -> Sequence[Work]:
        """See the interface; work stays in its stream until the next call, so a lost answer loses nothing."""
        if count <= 0:
            return []
        stream = self.keys.work(stage, worker)
        after = self._taken.get(stream, START)
        cursor, taken = await self._run("take", stage.value, worker, after, following(after), count)
        self._taken[stream] = cursor.decode()
        work = []
        for request_id, blob in taken:
            try:
                work.append(decode(blob, Work))
            except CodecError as error:
                name = request_id.decode(errors="replace")
                log.warning("work %s can't be read: %s", name, error)
                await self._run("end", request_id, "", CORRUPT.state.value, encode(CORRUPT), CORRUPT.reason)
        return work

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

    async def wait(self, worker: str, after: Cursor, block_s: float) -> Wake:
        """See the interface."""
        control = self.keys.control(worker)
        work = {self.keys.work(stage, worker): stage for stage in Stage}
        streams = {control: after} | {stream: self._taken.get(stream, START) for stream in work}
        found = await self._follow(streams, block_s, READ_COUNT, forget=control)
        entries = found.get(control, [])
        stages = tuple(stage for stream, stage in work.items() if found.get(stream))
        return Wake(entries[-1][0] if entries else after, controls_from(entries), stages)


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
