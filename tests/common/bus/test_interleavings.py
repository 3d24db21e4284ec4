import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.bus.interface import START, Bus
from common.bus.memory import MemoryBus
from common.bus.redis import RedisBus
from common.keys import Keys
from common.redis_server import RedisServer
from tests.common.bus.conftest import SERVERS, server_named
from tests.common.bus.scenario import Op, ops, play, truth
from tests.common.bus.steps import dispatched, frame, stored
from tests.redis_servers import flush

SHARED = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)

deliveries = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=30)
"""Frames by position and length, in any order, with repetitions and holes."""


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> RedisServer:
    return server_named(request, request.param)


@given(ops)
@settings(max_examples=150)
def test_whatever_happens_nothing_is_lost_or_ends_twice(events: list[Op]) -> None:
    asyncio.run(play(MemoryBus(), events))


@given(events=ops)
@settings(max_examples=20, suppress_health_check=SHARED)
def test_redis_does_what_the_memory_does(server: RedisServer, events: list[Op]) -> None:
    flush(server.url)

    async def both() -> None:
        async with RedisBus(server.url, Keys("test")) as bus:
            assert await play(bus, events) == await play(MemoryBus(), events)

    asyncio.run(both())


@given(deliveries)
@settings(max_examples=150)
def test_frames_in_any_order_give_a_prefix_of_the_text(parts: list[tuple[int, int]]) -> None:
    asyncio.run(deliver(MemoryBus(), parts))


@given(parts=deliveries)
@settings(max_examples=20, suppress_health_check=SHARED)
def test_frames_in_any_order_give_a_prefix_of_the_text_in_redis(
    server: RedisServer, parts: list[tuple[int, int]]
) -> None:
    flush(server.url)

    async def there() -> None:
        async with RedisBus(server.url, Keys("test")) as bus:
            await deliver(bus, parts)

    asyncio.run(there())


async def deliver(bus: Bus, parts: list[tuple[int, int]]) -> None:
    work, _ = await dispatched(bus)
    expected = 0
    for position, count in parts:
        (accepted,) = await bus.emit("p", [frame(work, position, truth(position, count))])
        if not accepted:
            assert position > expected
            break
        expected = max(expected, position + count)
    assert (await stored(bus, work.request.id)).generated == truth(0, expected)
    told: list[int] = []
    for reply in (await bus.replies("api", START, 0))[1][1:]:
        assert reply.position == len(told)  # type: ignore[union-attr] # only frames follow the decision
        told += reply.tokens  # type: ignore[union-attr] # the same
    assert tuple(told) == truth(0, expected)
