from common.bus.interface import Bus, QueueDepth, Submitted
from common.messages import Record, State
from tests.common.bus.steps import CANCELLED, DONE, claimed, dispatched, frame, lead, queued, stored, told, work_of
from tests.factories import make_request


async def test_a_submitted_request_can_be_looked_up(bus: Bus) -> None:
    request = await queued(bus)
    assert await bus.record(request.id) == Record(request, State.QUEUED, 1, None, (), None, {}, None, None)


async def test_an_unknown_request_has_no_record(bus: Bus) -> None:
    assert await bus.record("nobody") is None


async def test_a_second_request_with_the_same_id_is_refused_and_changes_nothing(bus: Bus) -> None:
    request = await queued(bus)
    assert await bus.submit(make_request(id=request.id, tier="code"), 1000) is Submitted.DUPLICATE
    assert (await stored(bus, request.id)).request == request
    assert (await bus.depths(["chat", "code"]))["code"].waiting == 0


async def test_a_full_tier_refuses_and_another_tier_does_not(bus: Bus) -> None:
    await queued(bus)
    await queued(bus)
    refused = make_request()
    assert await bus.submit(refused, 2) is Submitted.FULL
    assert await bus.record(refused.id) is None
    assert await bus.submit(make_request(tier="code"), 2) is Submitted.ACCEPTED


async def test_held_requests_count_against_the_bound_until_they_are_dispatched(bus: Bus) -> None:
    claim, token = await claimed(bus)
    assert await bus.submit(make_request(), 1) is Submitted.FULL
    await bus.dispatch(claim, work_of(claim), token)
    assert await bus.submit(make_request(), 1) is Submitted.ACCEPTED


async def test_a_cancelled_request_makes_room(bus: Bus) -> None:
    request = await queued(bus)
    await bus.end(request.id, CANCELLED)
    assert await bus.submit(make_request(), 1) is Submitted.ACCEPTED


async def test_depths_tell_how_many_wait_and_since_when(bus: Bus) -> None:
    await queued(bus, arrival_s=7.5)
    await queued(bus, arrival_s=8.5)
    await lead(bus)
    await bus.claim("chat", "planner", 1)
    assert await bus.depths(["chat", "code"]) == {"chat": QueueDepth(2, 7.5), "code": QueueDepth(0, None)}


async def test_ending_an_unknown_request_or_another_attempt_does_nothing(bus: Bus) -> None:
    request = await queued(bus)
    assert not await bus.end("nobody", CANCELLED)
    assert not await bus.end(request.id, CANCELLED, attempt=2)
    assert (await stored(bus, request.id)).state is State.QUEUED


async def test_an_end_of_the_present_attempt_counts(bus: Bus) -> None:
    request = await queued(bus)
    assert await bus.end(request.id, CANCELLED, attempt=1)
    assert (await stored(bus, request.id)).end == CANCELLED


async def test_a_request_without_an_api_tells_nobody(bus: Bus) -> None:
    work, _ = await dispatched(bus, reply_to="")
    assert await bus.emit("p", [frame(work, 0, (1,), DONE)]) == [True]
    assert await told(bus, "") == []
    assert (await stored(bus, work.request.id)).generated == (1,)


async def test_sweep_forgets_what_ended_long_ago_and_nothing_else(bus: Bus) -> None:
    ended, waiting = await queued(bus), await queued(bus)
    await bus.end(ended.id, CANCELLED)
    assert await bus.sweep(older_than_s=1.0) == 0
    assert await bus.sweep(older_than_s=1e11) == 1
    assert await bus.record(ended.id) is None
    assert await bus.record(waiting.id) is not None
    assert await bus.sweep(older_than_s=1e11) == 0
    assert await bus.submit(ended, 1000) is Submitted.ACCEPTED


async def test_sweep_does_at_most_what_it_is_asked(bus: Bus) -> None:
    for _ in range(3):
        await bus.end((await queued(bus)).id, CANCELLED)
    assert [await bus.sweep(1e11, count=2), await bus.sweep(1e11, count=2)] == [2, 1]


async def test_a_bus_answers(bus: Bus) -> None:
    await bus.ping()
