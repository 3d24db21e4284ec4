"""What can't be read in Redis is given up or left out, and harms nothing else."""

import pytest

from common.bus.interface import START
from common.bus.redis import RedisBus
from common.codec import encode
from common.keys import Keys
from common.messages import End, KeepTrace, Stage, State
from tests.common.bus.steps import (
    CANCELLED,
    TTL_S,
    claimed,
    dispatched,
    frame,
    frames_told,
    handed_off,
    heartbeat,
    lead,
    queued,
    stored,
    taken,
    work_of,
)

KEYS = Keys("test")


async def test_an_entry_that_is_none_is_a_dead_letter(redis_bus: RedisBus) -> None:
    await redis_bus._command("XADD", KEYS.requests("chat"), "*", "what", "ever")
    await redis_bus._command("XADD", KEYS.requests("chat"), "*", "id", "nobody")
    here = await queued(redis_bus)
    await lead(redis_bus)
    assert [claim.request for claim in await redis_bus.claim("chat", "planner", 5)] == [here]
    letters = [(letter.id, letter.reason) for letter in await redis_bus.dead_letters()]
    assert letters == [("nobody", "no_record"), ("", "corrupt_entry")]
    assert (await redis_bus.depths(["chat"]))["chat"].waiting == 1


async def test_a_second_entry_of_a_request_is_dropped(redis_bus: RedisBus) -> None:
    request = await queued(redis_bus)
    await redis_bus._command("XADD", KEYS.requests("chat"), "*", "id", request.id, "arrival", "1.0")
    await lead(redis_bus)
    assert [claim.request for claim in await redis_bus.claim("chat", "planner", 5)] == [request]
    assert (await redis_bus.depths(["chat"]))["chat"].waiting == 1


async def test_nothing_is_left_for_a_buried_worker(redis_bus: RedisBus) -> None:
    work, token = await handed_off(redis_bus)
    await redis_bus.requeue("p", token)
    await redis_bus.end(work.request.id, CANCELLED)
    assert await redis_bus._command("EXISTS", KEYS.control("p")) == 0
    assert await redis_bus._command("EXISTS", KEYS.control("d")) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request", b"\xc1 garbage"),
        ("request", encode(End(State.DONE, "x"))),
        ("attempt", b"one"),
        ("deferred_s", b"?"),
    ],
)
async def test_a_corrupt_record_is_a_dead_letter_and_fails(redis_bus: RedisBus, field: str, value: bytes) -> None:
    broken, here = await queued(redis_bus), await queued(redis_bus)
    await redis_bus._command("HSET", KEYS.record(broken.id), field, value)
    await lead(redis_bus)
    assert [claim.request for claim in await redis_bus.claim("chat", "planner", 5)] == [here]
    assert [(letter.id, letter.reason) for letter in await redis_bus.dead_letters()] == [(broken.id, "corrupt")]
    assert await redis_bus._command("HGET", KEYS.record(broken.id), "state") == b"failed"
    assert (await redis_bus.depths(["chat"]))["chat"].waiting == 1
    if field != "attempt":
        assert [told.end for told in await frames_told(redis_bus)] == [End(State.FAILED, "corrupt")]


async def test_a_record_of_another_type_is_a_dead_letter(redis_bus: RedisBus) -> None:
    broken = await queued(redis_bus)
    await redis_bus._command("SET", KEYS.record(broken.id), "text")
    await lead(redis_bus)
    assert await redis_bus.claim("chat", "planner", 5) == []
    assert [letter.id for letter in await redis_bus.dead_letters()] == [broken.id]


async def test_torn_tokens_are_a_dead_letter(redis_bus: RedisBus) -> None:
    work, token = await dispatched(redis_bus)
    await redis_bus.emit("p", [frame(work, 0, (1, 2))])
    await redis_bus.requeue("p", token)
    await redis_bus._command("SET", KEYS.tokens(work.request.id), b"\x01\x02\x03")
    assert await redis_bus.claim("chat", "planner", 5) == []
    assert [letter.reason for letter in await redis_bus.dead_letters()] == ["corrupt"]


async def test_work_that_can_not_be_read_fails_its_request(redis_bus: RedisBus) -> None:
    claim, token = await claimed(redis_bus)
    await redis_bus.dispatch(claim, work_of(claim), token)
    await redis_bus._command("HSET", KEYS.record(claim.request.id), "work", b"garbage")
    assert await taken(redis_bus, Stage.PREFILL, "p", 5) == []
    assert (await stored(redis_bus, claim.request.id)).end == End(State.FAILED, "corrupt")


async def test_what_can_not_be_read_in_a_stream_is_left_out(redis_bus: RedisBus) -> None:
    work, _ = await dispatched(redis_bus)
    for stream in (KEYS.replies("api"), KEYS.control("p"), KEYS.progress):
        for name in ("decided", "frame:x", "end:1", "1:2:3", "cancel:a:b", "message"):
            await redis_bus._command("XADD", stream, "*", name, b"\xff\xc1")
    await redis_bus.emit("p", [frame(work, 0, (1,))])
    await redis_bus.send("p", KeepTrace("abc"))
    assert await frames_told(redis_bus) == [frame(work, 0, (1,))]
    assert (await redis_bus.wait("p", START, 0))[1] == [KeepTrace("abc")]
    assert [item.id for item in (await redis_bus.progress(START, 0))[1]] == [work.request.id]


async def test_a_heartbeat_that_can_not_be_read_is_no_dead_worker(redis_bus: RedisBus) -> None:
    await redis_bus.beat(heartbeat("p"), TTL_S)
    await redis_bus._command("SET", KEYS.worker("p"), b"garbage")
    assert await redis_bus.workers() == {}
