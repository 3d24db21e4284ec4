"""Frames of one step travel together, survive an outage, and a refused one is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from common.errors import BusUnavailable
from common.messages import End, Frame, State
from common.worker.outbox import Outbox


class RecordingBus:
    """Records what is emitted; ``outages`` calls fail first, ``refused`` ids are not accepted."""

    def __init__(self, outages: int = 0, refused: frozenset[str] = frozenset()) -> None:
        self.calls: list[list[Frame]] = []
        self.busy_until_s: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._outages = outages
        self._refused = refused

    async def emit(self, worker: str, frames: Sequence[Frame], busy_until_s: float = 0.0) -> Sequence[bool]:
        await self.gate.wait()
        self.busy_until_s.append(busy_until_s)
        self.calls.append(list(frames))
        if self._outages:
            self._outages -= 1
            raise BusUnavailable("away")
        return [frame.id not in self._refused for frame in frames]


def frame(request_id: str, position: int, *tokens: int, end: End | None = None) -> Frame:
    return Frame(request_id, 1, position, tokens, 0.0, end, {f"n{position}": 1.0})


@asynccontextmanager
async def running(outbox: Outbox) -> AsyncIterator[Outbox]:
    task = asyncio.create_task(outbox.run())
    yield outbox
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def sent(outbox: Outbox, *frames: Frame) -> None:
    async with running(outbox):
        for item in frames:
            outbox.put(item)
        await outbox.flush()


async def test_frames_of_one_step_are_one_call() -> None:
    bus = RecordingBus()
    await sent(Outbox(bus, "w", lambda _: None), frame("a", 0, 1), frame("b", 3, 2))  # type: ignore[arg-type]  # one verb is used
    assert [[item.id for item in call] for call in bus.calls] == [["a", "b"]]


async def test_first_tokens_leave_before_many_others_and_are_told_apart() -> None:
    lost: list[str] = []
    bus = RecordingBus(refused=frozenset({"new", "b"}))
    others = [frame(name, 3, 2) for name in "abcdefghi"]
    await sent(Outbox(bus, "w", lost.append), *others, frame("new", 0, 1), frame("newer", 0, 1))  # type: ignore[arg-type]  # as above
    assert [[item.id for item in call] for call in bus.calls] == [["new", "newer"], list("abcdefghi")]
    assert lost == ["new", "b"]


async def test_frames_of_one_request_are_joined_in_order_with_their_notes_and_end() -> None:
    bus = RecordingBus()
    end = End(State.DONE, "stop")
    await sent(Outbox(bus, "w", lambda _: None), frame("a", 0, 1), frame("a", 1, 2, 3, end=end))  # type: ignore[arg-type]  # as above
    assert bus.calls == [[Frame("a", 1, 0, (1, 2, 3), 0.0, end, {"n0": 1.0, "n1": 1.0})]]


async def test_an_outage_repeats_the_same_frames() -> None:
    bus = RecordingBus(outages=1)
    await sent(Outbox(bus, "w", lambda _: None), frame("a", 0, 1))  # type: ignore[arg-type]  # as above
    assert bus.calls[0] == bus.calls[1] == [frame("a", 0, 1)]


async def test_a_refused_frame_is_told_by_its_request() -> None:
    lost: list[str] = []
    bus = RecordingBus(refused=frozenset({"b"}))
    await sent(Outbox(bus, "w", lost.append), frame("a", 0, 1), frame("b", 0, 1))  # type: ignore[arg-type]  # as above
    assert lost == ["b"]


async def test_flush_waits_for_what_is_being_sent() -> None:
    bus = RecordingBus()
    bus.gate.clear()
    outbox = Outbox(bus, "w", lambda _: None)  # type: ignore[arg-type]  # as above
    running = asyncio.create_task(outbox.run())
    done = outbox.put(frame("a", 0, 1))
    await asyncio.sleep(0)
    flushing = asyncio.create_task(outbox.flush())
    await asyncio.sleep(0)
    assert not flushing.done()
    bus.gate.set()
    await asyncio.wait_for(flushing, 5)
    assert done.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_frame_that_may_wait_travels_with_the_next_that_may_not() -> None:
    bus = RecordingBus()
    async with running(Outbox(bus, "w", lambda _: None)) as outbox:  # type: ignore[arg-type]  # as above
        outbox.put(frame("a", 0, 1), wait_s=60.0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert bus.calls == []
        await outbox.put(frame("b", 0, 2))
    assert [[item.id for item in call] for call in bus.calls] == [["a", "b"]]


async def test_a_frame_that_may_wait_leaves_in_time_by_itself() -> None:
    bus = RecordingBus()
    async with running(Outbox(bus, "w", lambda _: None)) as outbox:  # type: ignore[arg-type]  # as above
        await outbox.put(frame("a", 0, 1), wait_s=0.01)
    assert [item.tokens for item in bus.calls[0]] == [(1,)]


async def test_a_flush_waits_for_nothing() -> None:
    bus = RecordingBus()
    async with running(Outbox(bus, "w", lambda _: None)) as outbox:  # type: ignore[arg-type]  # as above
        outbox.put(frame("a", 0, 1), wait_s=60.0)
        await outbox.flush()
    assert len(bus.calls) == 1


async def test_a_frame_does_not_wait_for_a_step_that_ends_later_which_the_planner_is_told_of() -> None:
    bus = RecordingBus()
    async with running(Outbox(bus, "w", lambda _: None, lambda: 70.0)) as outbox:  # type: ignore[arg-type]  # as above
        await asyncio.wait_for(outbox.put(frame("a", 0, 1), wait_s=60.0), 5)
    assert bus.busy_until_s == [70.0]
