import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from common.bus.interface import START, Bus, Wake
from common.messages import Cancel, KeepTrace, Stage
from tests.common.bus.steps import (
    CANCELLED,
    claimed,
    dispatched,
    frame,
    handing_off,
    queued,
    taken,
    work_of,
)

LONG_S = 30.0

T = TypeVar("T")


async def while_reading(reading: Coroutine[Any, Any, T], happening: Coroutine[Any, Any, Any]) -> T:
    """What a long read returns when something happens after it began."""
    async with asyncio.timeout(5):
        task = asyncio.create_task(reading)
        await asyncio.sleep(0)
        await happening
        return await task


async def test_replies_are_read_from_a_cursor(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    cursor, _ = await bus.replies("api", START, 0)
    await bus.emit("p", [frame(work, 0, (5,))])
    later, replies = await bus.replies("api", cursor, LONG_S)
    assert replies == [frame(work, 0, (5,))]
    assert (await bus.replies("api", later, 0)) == (later, [])


async def test_a_cursor_that_was_not_moved_reads_the_same_again(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    cursor, _ = await bus.replies("api", START, 0)
    await bus.emit("p", [frame(work, 0, (5,))])
    assert await bus.replies("api", cursor, 0) == await bus.replies("api", cursor, 0)


async def test_no_reply_in_time_is_an_empty_answer(bus: Bus) -> None:
    assert await bus.replies("api", START, 0.01) == (START, [])


async def test_a_waiting_api_hears_at_once(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    cursor, _ = await bus.replies("api", START, 0)
    _, replies = await while_reading(bus.replies("api", cursor, LONG_S), bus.emit("p", [frame(work, 0, (5,))]))
    assert replies == [frame(work, 0, (5,))]


async def test_a_submission_wakes_the_planner(bus: Bus) -> None:
    await queued(bus)
    cursor, *_ = await bus.progress(START, 0)
    later, news, arrived = await while_reading(bus.progress(cursor, LONG_S), queued(bus, tier="code"))
    assert (news, arrived) == ([], True)
    assert later != cursor


async def test_a_submission_before_the_read_wakes_the_planner_too(bus: Bus) -> None:
    cursor, *_ = await bus.progress(START, 0)
    await queued(bus)
    async with asyncio.timeout(5):
        later, *_ = await bus.progress(cursor, LONG_S)
    assert await bus.progress(later, 0) == (later, [], False)


async def test_requeued_work_wakes_the_planner(bus: Bus) -> None:
    _, token = await dispatched(bus)
    cursor, *_ = await bus.progress(START, 0)
    later, _, arrived = await while_reading(bus.progress(cursor, LONG_S), bus.requeue("p", token))
    assert later != cursor
    assert arrived


async def test_news_wakes_the_planner(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    cursor, *_ = await bus.progress(START, 0)
    later, news, arrived = await while_reading(bus.progress(cursor, LONG_S), bus.emit("p", [frame(work, 0, (5,))]))
    assert not arrived
    assert [(item.id, item.generated) for item in news] == [(work.request.id, 1)]
    assert await bus.progress(later, 0) == (later, [], False)


async def test_a_quiet_time_is_an_empty_answer(bus: Bus) -> None:
    cursor, *_ = await bus.progress(START, 0)
    assert (await bus.progress(cursor, 0.01))[1] == []
    assert (await bus.wait("p", START, 0.01, 5)) == Wake(START, [], [])


async def test_work_wakes_its_worker_and_comes_with_that(bus: Bus) -> None:
    claim, token = await claimed(bus)
    woken = await while_reading(bus.wait("p", START, LONG_S, 5), bus.dispatch(claim, work_of(claim), token))
    assert woken == Wake(START, [], [(Stage.PREFILL, work_of(claim))])
    assert await taken(bus, Stage.PREFILL, "p", 5) == []


async def test_work_does_not_wake_who_has_no_room(bus: Bus) -> None:
    claim, token = await claimed(bus)
    reading = asyncio.create_task(bus.wait("p", START, LONG_S))
    await asyncio.sleep(0)
    await bus.dispatch(claim, work_of(claim), token)
    _, others = await asyncio.wait([reading], timeout=0.05)
    assert others == {reading}
    await bus.send("p", KeepTrace("abc"))
    assert (await reading)[1:] == ([KeepTrace("abc")], [])
    assert await taken(bus, Stage.PREFILL, "p", 5) == [work_of(claim)]


async def test_prompts_and_hand_offs_come_together_and_share_the_room(bus: Bus) -> None:
    handed, _ = await dispatched(bus)
    await bus.hand_off("p", handing_off(handed))
    claim, token = await claimed(bus)
    await bus.dispatch(claim, work_of(claim, "d"), token)
    assert (await bus.wait("d", START, 0, 1)).work == [(Stage.PREFILL, work_of(claim, "d"))]
    assert (await bus.wait("d", START, 0, 1)).work == [(Stage.DECODE, handing_off(handed))]


async def test_a_hand_off_wakes_the_decode_worker(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    woken = await while_reading(bus.wait("d", START, LONG_S, 5), bus.hand_off("p", handing_off(work)))
    assert woken.work == [(Stage.DECODE, handing_off(work))]


async def test_work_that_is_there_does_not_let_a_worker_wait(bus: Bus) -> None:
    for _ in range(2):
        claim, token = await claimed(bus)
        await bus.dispatch(claim, work_of(claim), token)
    await taken(bus, Stage.PREFILL, "p", 1)
    async with asyncio.timeout(5):
        assert (await bus.wait("p", START, LONG_S, 5)).work == [(Stage.PREFILL, work_of(claim))]


async def test_a_worker_that_took_its_work_waits(bus: Bus) -> None:
    await dispatched(bus)
    waiting = asyncio.create_task(bus.wait("p", START, LONG_S, 5))
    _, others = await asyncio.wait([waiting], timeout=0.05)
    assert others == {waiting}
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_cancel_wakes_its_worker_and_is_read_once(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    cursor, controls, _ = await while_reading(bus.wait("p", START, LONG_S), bus.end(work.request.id, CANCELLED))
    assert controls == [Cancel(work.request.id, 1, "client_gone")]
    assert await bus.wait("p", cursor, 0) == Wake(cursor, [], [])


async def test_a_cancelled_caller_ends_wherever_it_is(bus: Bus) -> None:
    async def caller() -> None:
        while True:
            await bus.leave("nobody")
            await bus.replies("api", START, 0.001)
            await asyncio.sleep(0)

    for steps in range(60):
        task = asyncio.create_task(caller())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        ended, _ = await asyncio.wait([task], timeout=5)
        task.cancel()
        assert ended == {task}, f"after {steps} steps"
