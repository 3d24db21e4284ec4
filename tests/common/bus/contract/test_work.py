import asyncio

from common.bus.interface import START, Bus
from common.codec import Tokens
from common.messages import End, Frame, Progress, Stage, State
from tests.common.bus.steps import (
    CANCELLED,
    DONE,
    again,
    claimed,
    dispatched,
    frame,
    frames_told,
    handed_off,
    handing_off,
    lead,
    queued,
    stored,
    taken,
    told,
    work_of,
)


async def test_work_is_taken_oldest_first_and_once(bus: Bus) -> None:
    names = [(await queued(bus)).id for _ in range(3)]
    token = await lead(bus)
    for claim in await bus.claim("chat", "planner", 3):
        await bus.dispatch(claim, work_of(claim), token)
    works = [*await taken(bus, Stage.PREFILL, "p", 2), *await taken(bus, Stage.PREFILL, "p", 2)]
    assert [work.request.id for work in works] == names
    assert await taken(bus, Stage.PREFILL, "p", 2) == []
    assert await taken(bus, Stage.DECODE, "p", 2) == []


async def test_taking_nothing_takes_nothing(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.dispatch(claim, work_of(claim), token)
    assert await taken(bus, Stage.PREFILL, "p", 0) == []
    assert len(await taken(bus, Stage.PREFILL, "p", 1)) == 1


async def test_work_of_an_ended_request_is_left_out(bus: Bus) -> None:
    token = await lead(bus)
    gone, here = await queued(bus), await queued(bus)
    for claim in await bus.claim("chat", "planner", 2):
        await bus.dispatch(claim, work_of(claim), token)
    await bus.end(gone.id, CANCELLED)
    assert [work.request.id for work in await taken(bus, Stage.PREFILL, "p", 1)] == [here.id]


async def test_work_of_an_older_attempt_is_left_out(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.dispatch(claim, work_of(claim), token)
    assert await bus.emit("p", [frame(work_of(claim), 1, (6,))]) == [False]
    (retried,) = await bus.claim("chat", "planner", 1)
    await bus.dispatch(retried, work_of(retried), token)
    assert await taken(bus, Stage.PREFILL, "p", 5) == [work_of(retried)]


async def test_tokens_are_stored_and_told_with_their_position(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    frames = [frame(work, 0, (5,), prefill_start_s=2.5), frame(work, 1, (6, 4294967295))]
    assert await bus.emit("p", frames) == [True, True]
    assert (await stored(bus, work.request.id)).generated == (5, 6, 4294967295)
    assert (await stored(bus, work.request.id)).notes == {"prefill_start_s": 2.5}
    assert await frames_told(bus) == frames


async def test_frames_reach_their_own_api(bus: Bus) -> None:
    first, _ = await dispatched(bus, reply_to="one")
    second, _ = await dispatched(bus, reply_to="two")
    assert await bus.emit("p", [frame(first, 0, (1,)), frame(second, 0, (2,))]) == [True, True]
    assert await frames_told(bus, "one") == [frame(first, 0, (1,))]
    assert await frames_told(bus, "two") == [frame(second, 0, (2,))]


async def test_many_frames_are_emitted_in_one_call(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    assert all(await bus.emit("p", [frame(work, position, (position,)) for position in range(600)]))
    assert (await stored(bus, work.request.id)).generated == tuple(range(600))
    assert [part.position for part in await frames_told(bus)] == list(range(600))
    assert await bus.emit("p", []) == []


async def test_first_tokens_and_ends_are_news_for_the_planner(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5,)), frame(work, 1, (6,)), frame(work, 2, (7,), DONE)])
    _, news, _ = await bus.progress(START, 0)
    assert news == [
        Progress(work.request.id, 1, "p", 1, False, 101.0),
        Progress(work.request.id, 1, "p", 3, True, 101.0),
    ]


async def test_the_first_token_of_each_attempt_is_news(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5, 6))])
    await bus.requeue("p", token)
    retried = await again(bus, "chat", token, "q")
    cursor, *_ = await bus.progress(START, 0)
    await bus.emit("q", [frame(retried, 2, (7,)), frame(retried, 3, (8,))])
    assert (await bus.progress(cursor, 0))[1] == [Progress(work.request.id, 2, "q", 3, False, 101.0)]


async def test_an_end_settles_the_request_once(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    last = frame(work, 0, (5,), DONE)
    assert await bus.emit("p", [last, last]) == [True, False]
    record = await stored(bus, work.request.id)
    assert (record.state, record.end, record.generated) == (State.DONE, DONE, (5,))
    assert await bus.inflight("p") == []
    assert not await bus.end(work.request.id, CANCELLED)
    assert await frames_told(bus) == [last]


async def test_of_many_ends_at_once_exactly_one_counts(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    emits = [bus.emit("p", [frame(work, 0, (1,), DONE)]) for _ in range(10)]
    cancels = [bus.end(work.request.id, CANCELLED) for _ in range(10)]
    emitted, cancelled = await asyncio.gather(asyncio.gather(*emits), asyncio.gather(*cancels))
    assert sum(cancelled) + sum(answer[0] for answer in emitted) == 1
    assert sum(reply.end is not None for reply in await frames_told(bus)) == 1


async def test_frames_of_an_older_attempt_are_dropped(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.requeue("p", token)
    retried = await again(bus, "chat", token, "q")
    assert await bus.emit("p", [frame(work, 0, (66,), DONE)]) == [False]
    assert await bus.emit("q", [frame(work, 0, (66,), DONE)]) == [False]
    assert await bus.emit("q", [frame(retried, 0, (7,))]) == [True]
    assert (await stored(bus, work.request.id)).generated == (7,)


async def test_frames_of_a_worker_that_does_not_have_the_request_are_dropped(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    assert await bus.emit("d", [frame(work, 0, (66,))]) == [False]
    assert await bus.emit("p", [Frame("nobody", 1, 0, (66,), 1.0)]) == [False]
    assert await told(bus) == (await told(bus))[:1]


async def test_a_replayed_frame_is_accepted_and_has_no_effect(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    both = [frame(work, 0, (5, 6)), frame(work, 2, (7,))]
    await bus.emit("p", both)
    assert await bus.emit("p", both) == [True, True]
    assert (await stored(bus, work.request.id)).generated == (5, 6, 7)
    assert await frames_told(bus) == both


async def test_of_an_overlapping_frame_only_what_is_new_counts(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5, 6))])
    assert await bus.emit("p", [frame(work, 1, (6, 7, 8), DONE)]) == [True]
    assert (await stored(bus, work.request.id)).generated == (5, 6, 7, 8)
    assert (await frames_told(bus))[1] == frame(work, 2, (7, 8), DONE)


async def test_an_end_without_new_tokens_counts(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5, 6))])
    assert await bus.emit("p", [frame(work, 1, (6,), DONE)]) == [True]
    assert (await frames_told(bus))[1] == frame(work, 2, (), DONE)


async def test_after_a_gap_the_request_goes_back_with_what_is_stored(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5,))])
    assert await bus.emit("p", [frame(work, 2, (7,)), frame(work, 3, (8,), DONE)]) == [False, False]
    assert await bus.inflight("p") == []
    assert (await bus.progress(START, 0))[1][-1] == Progress(work.request.id, 1, "p", 1, True, 101.0)
    retried = await again(bus, "chat", token, "q")
    assert (retried.attempt, retried.generated) == (2, (5,))


async def test_a_hand_off_moves_the_request_to_its_decode_worker(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (1000,))])
    assert await bus.hand_off("p", handing_off(work))
    assert await bus.inflight("p") == []
    assert [record.decode_worker for record in await bus.inflight("d")] == ["d"]
    assert await taken(bus, Stage.DECODE, "d", 5) == [handing_off(work)]


async def test_after_a_hand_off_only_the_decode_worker_is_heard(bus: Bus) -> None:
    work, _ = await handed_off(bus)
    assert await bus.emit("p", [frame(work, 1, (66,))]) == [False]
    assert await bus.emit("d", [frame(work, 1, (7,), DONE)]) == [True]
    assert (await stored(bus, work.request.id)).generated == (1000, 7)


async def test_a_repeated_hand_off_is_harmless(bus: Bus) -> None:
    work, _ = await handed_off(bus)
    assert await bus.hand_off("p", handing_off(work))
    assert await taken(bus, Stage.DECODE, "d", 5) == []


async def test_only_the_worker_that_has_a_request_hands_it_off(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    assert not await bus.hand_off("q", handing_off(work))
    await bus.end(work.request.id, CANCELLED)
    assert not await bus.hand_off("p", handing_off(work))
    assert await taken(bus, Stage.DECODE, "d", 5) == []


async def test_a_hand_off_to_a_buried_worker_goes_back_to_the_tier(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (1000,))])
    await bus.requeue("d", token)
    assert not await bus.hand_off("p", handing_off(work))
    retried = await again(bus, "chat", token, "p2", "d2")
    assert (retried.attempt, retried.generated) == (2, (1000,))


async def test_an_end_says_why(bus: Bus) -> None:
    work, _ = await dispatched(bus)
    end = End(State.FAILED, "engine", "out of cards", 2.5)
    await bus.emit("p", [frame(work, 0, (), end)])
    assert (await stored(bus, work.request.id)).end == end
    empty: Tokens = ()
    assert await frames_told(bus) == [frame(work, 0, empty, end)]
