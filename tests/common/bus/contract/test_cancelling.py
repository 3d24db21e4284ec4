from collections.abc import Sequence

from common.bus.interface import START, Bus
from common.keys import ADMISSION
from common.messages import Cancel, Control, Frame, KeepTrace, Known, State
from tests.common.bus.steps import (
    CANCELLED,
    again,
    claimed,
    dispatched,
    frame,
    frames_told,
    handed_off,
    queued,
    stored,
)


async def controls(bus: Bus, name: str) -> Sequence[Control]:
    return (await bus.wait(name, START, 0))[1]


async def closing(bus: Bus, position: int, attempt: int = 1) -> Frame:
    last = (await frames_told(bus))[-1]
    assert (last.position, last.tokens, last.attempt, last.end) == (position, (), attempt, CANCELLED)
    return last


async def test_a_queued_request_is_cancelled(bus: Bus) -> None:
    request = await queued(bus)
    assert await bus.end(request.id, CANCELLED)
    assert (await stored(bus, request.id)).state is State.CANCELLED
    assert (await closing(bus, 0)).id == request.id
    assert await controls(bus, ADMISSION) == [Cancel(request.id, 1, "client_gone")]
    assert (await bus.depths(["chat"]))["chat"].waiting == 0


async def test_a_held_request_is_cancelled_and_not_reclaimed(bus: Bus) -> None:
    claim, _ = await claimed(bus)
    assert await bus.end(claim.request.id, CANCELLED)
    assert await controls(bus, ADMISSION) == [Cancel(claim.request.id, 1, "client_gone")]
    assert (await bus.depths(["chat"]))["chat"].waiting == 0
    assert await bus.reclaim(["chat"], "planner") == []


async def test_a_dispatched_request_is_cancelled_at_its_worker(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5, 6))])
    assert await bus.end(work.request.id, CANCELLED, attempt=1)
    cancel = Cancel(work.request.id, 1, "client_gone")
    assert await controls(bus, "p") == [cancel]
    assert await controls(bus, ADMISSION) == [cancel]
    assert await bus.inflight("p") == []
    await closing(bus, 2)
    assert await bus.emit("p", [frame(work, 2, (7,))]) == [False]


async def test_a_handed_off_request_is_cancelled_on_both_sides(bus: Bus) -> None:
    work, _ = await handed_off(bus)
    assert await bus.end(work.request.id, CANCELLED)
    for name in ("p", "d", ADMISSION):
        assert await controls(bus, name) == [Cancel(work.request.id, 1, "client_gone")]
    await closing(bus, 1)
    assert await bus.inflight("d") == []


async def test_a_worker_that_does_both_is_told_once(bus: Bus) -> None:
    work, _ = await dispatched(bus, prefill="p", decode="p")
    await bus.end(work.request.id, CANCELLED)
    assert len(await controls(bus, "p")) == 1


async def test_a_retried_request_is_cancelled_where_it_is_now(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.requeue("p", token)
    await again(bus, "chat", token, "q", "d")
    assert await bus.end(work.request.id, CANCELLED)
    assert await controls(bus, "q") == [Cancel(work.request.id, 2, "client_gone")]
    assert await controls(bus, "p") == []
    await closing(bus, 0, attempt=2)


async def test_a_second_cancel_is_too_late(bus: Bus) -> None:
    request = await queued(bus)
    assert await bus.end(request.id, CANCELLED)
    assert not await bus.end(request.id, CANCELLED)
    assert len(await frames_told(bus)) == 1


async def test_control_messages_reach_their_process(bus: Bus) -> None:
    await bus.send("p", KeepTrace("abc"))
    await bus.send("p", Known("planner"))
    await bus.send("p", Cancel("r", 3, "why: so"))
    assert await controls(bus, "p") == [KeepTrace("abc"), Known("planner"), Cancel("r", 3, "why: so")]
    assert await controls(bus, "d") == []
