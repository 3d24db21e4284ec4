"""What only Redis can do to us: lose groups and data, restart, hang and run full; and what it keeps."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.bus.interface import START, Bus, Submitted
from common.bus.redis import RedisBus, online_url
from common.bus.redis_client import MAX_CONNECTIONS
from common.errors import BusFull, BusUnavailable
from common.keys import PLANNERS, Keys
from common.messages import KeepTrace, Stage
from common.redis_server import RedisServer, socket_in
from common.settings import Settings
from tests.common.bus.conftest import SERVERS, server_named
from tests.common.bus.steps import (
    CANCELLED,
    DONE,
    TTL_S,
    claimed,
    decision,
    dispatched,
    eventually,
    frame,
    handed_off,
    handing_off,
    heartbeat,
    lead,
    queued,
    stored,
    taken,
    work_of,
)
from tests.factories import make_request

KEYS = Keys("test")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that a test may break."""
    with RedisServer(tmp_path) as server:
        yield server


def test_both_buses_have_all_verbs(redis_server: RedisServer) -> None:
    bus: Bus = RedisBus.connect(Settings(redis_url=redis_server.url, namespace="test"))
    assert isinstance(bus, RedisBus)
    assert bus.keys == KEYS


async def test_the_unix_socket_leads_to_the_same_queue(redis_server: RedisServer) -> None:
    assert redis_server.socket is not None
    settings = Settings(redis_url=redis_server.url, redis_socket=redis_server.socket, namespace="socket")
    async with RedisBus.connect(settings) as near, RedisBus(redis_server.url, Keys("socket")) as far:
        assert "path" in near.connections.options
        await near.submit(make_request(id="one"), 1)
        assert await far.record("one") is not None


def test_a_unix_socket_is_used_with_the_login_and_database_of_the_url() -> None:
    settings = Settings(redis_url="redis://me:secret@far:6379/3", redis_socket=Path("/run/redis.sock"))
    assert online_url(settings) == "unix://me:secret@/run/redis.sock?db=3"


def test_a_folder_that_can_not_have_a_socket_has_none(tmp_path: Path) -> None:
    assert socket_in(tmp_path) == tmp_path.resolve() / "redis.sock"
    assert list(tmp_path.iterdir()) == []
    assert socket_in(tmp_path / "missing") is None
    long = tmp_path / ("x" * 100)
    long.mkdir()
    assert socket_in(long) is None


async def test_a_socket_s_path_may_have_any_characters(tmp_path: Path) -> None:
    folder = tmp_path / "50% of? #1"
    with RedisServer(folder) as server:
        assert server.socket is not None
        async with RedisBus.connect(Settings(redis_url=server.url, redis_socket=server.socket)) as bus:
            await bus.ping()


async def test_all_keys_are_in_one_slot_of_a_cluster(redis_bus: RedisBus) -> None:
    await redis_bus.beat(heartbeat("p"), TTL_S)
    work, token = await handed_off(redis_bus)
    await redis_bus.emit("d", [frame(work, 1, (1,), DONE)])
    await dispatched(redis_bus)
    await redis_bus.requeue("p", token)
    keys = await redis_bus._command("KEYS", "*")
    assert len(keys) > 10
    assert [key for key in keys if not key.startswith(b"{test}:")] == []


async def test_installations_do_not_see_each_other(redis_server: RedisServer, redis_bus: RedisBus) -> None:
    await queued(redis_bus, id="same")
    url = f"redis://127.0.0.1:{redis_bus.connections.options['port']}/0"
    async with RedisBus(url, Keys("other")) as other:
        assert await other.record("same") is None
        assert await other.submit(make_request(id="same"), 1) is Submitted.ACCEPTED


async def test_a_lost_group_is_made_again_and_everything_claimed_from_its_start(redis_bus: RedisBus) -> None:
    held, waiting = (await claimed(redis_bus))[0].request, await queued(redis_bus)
    await redis_bus._command("XGROUP", "DESTROY", KEYS.requests("chat"), PLANNERS)
    assert await redis_bus.reclaim(["chat"], "planner") == []
    claims = await redis_bus.claim("chat", "planner", 5)
    assert [claim.request for claim in claims] == [held, waiting]


async def test_a_redis_that_lost_everything_goes_on(redis_bus: RedisBus) -> None:
    work, token = await dispatched(redis_bus)
    replies, _ = await redis_bus.replies("api", START, 0)
    news, *_ = await redis_bus.progress(START, 0)
    await redis_bus._command("FLUSHALL")
    await redis_bus._command("SCRIPT", "FLUSH")
    assert await redis_bus.emit("p", [frame(work, 0, (1,))]) == [False]
    assert not await redis_bus.hand_off("p", handing_off(work))
    assert not await redis_bus.end(work.request.id, CANCELLED)
    assert await lead(redis_bus) > token
    fresh, _ = await dispatched(redis_bus, id="fresh")
    assert await redis_bus.emit("p", [frame(fresh, 0, (1,))]) == [True]
    assert [reply.id for reply in (await redis_bus.replies("api", replies, 5))[1]] == ["fresh", "fresh"]
    assert [item.id for item in (await redis_bus.progress(news, 5))[1]] == ["fresh"]


async def test_nothing_accepted_is_lost_when_redis_is_killed_and_started_again(own_server: RedisServer) -> None:
    async with RedisBus(own_server.url, KEYS) as bus:
        running, token = await handed_off(bus, id="running")
        waiting, held = await queued(bus, id="waiting"), await queued(bus, id="held")
        await bus.claim("chat", "planner", 1)
        cursor, _ = await bus.replies("api", START, 0)
        own_server.kill()
        for verb in (bus.ping(), bus.submit(make_request(), 9), bus.replies("api", START, 5), bus.lead("planner", 1)):
            with pytest.raises(BusUnavailable):
                await verb
        own_server.start()
        assert await bus.lead("planner", TTL_S) == token
        assert [claim.request for claim in await bus.reclaim(["chat"], "planner")] == [waiting]
        assert [claim.request for claim in await bus.claim("chat", "planner", 9)] == [held]
        assert await bus.emit("d", [frame(running, 1, (7,), DONE)]) == [True]
        assert (await stored(bus, "running")).generated == (1000, 7)
        assert [reply.id for reply in (await bus.replies("api", cursor, 5))[1]] == ["running"]


async def test_a_redis_that_hangs_is_unavailable_and_back_when_it_goes_on(own_server: RedisServer) -> None:
    assert own_server.pid
    async with RedisBus(own_server.url, KEYS, timeout_s=1.0) as bus:
        request = await queued(bus)
        os.kill(own_server.pid, signal.SIGSTOP)
        for verb in (bus.record(request.id), bus.replies("api", START, 0.05)):
            with pytest.raises(BusUnavailable):
                await verb
        os.kill(own_server.pid, signal.SIGCONT)
        assert await bus.record(request.id) is not None
        assert await bus.replies("api", START, 0.05) == (START, [])


async def test_reads_that_wait_do_not_make_others_wait(redis_bus: RedisBus) -> None:
    names = [f"w{number}" for number in range(MAX_CONNECTIONS + 8)]
    waiting = [asyncio.create_task(redis_bus.wait(name, START, 30.0)) for name in names]
    await asyncio.sleep(0.2)
    await redis_bus.send(names[-1], KeepTrace("abc"))
    try:
        async with asyncio.timeout(5.0):
            assert (await waiting[-1])[1] == [KeepTrace("abc")]
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_read_that_waits_ends_when_redis_goes(own_server: RedisServer) -> None:
    async with RedisBus(own_server.url, KEYS) as bus:
        await bus.ping()
        reading = [asyncio.create_task(bus.wait("p", START, 30)), asyncio.create_task(bus.progress(START, 30))]
        connected = b"blocked_clients:2"
        await eventually(lambda: info(own_server, b"clients"), lambda text: connected in text)
        own_server.kill()
        for task in reading:
            with pytest.raises(BusUnavailable):
                await task


async def info(server: RedisServer, section: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"INFO " + section + b"\r\n")
    size = int((await reader.readline())[1:])
    text = await reader.readexactly(size)
    writer.close()
    await writer.wait_closed()
    return text


async def test_connections_that_redis_closed_are_replaced_unseen(redis_bus: RedisBus) -> None:
    await asyncio.gather(*(queued(redis_bus) for _ in range(5)))
    await redis_bus.replies("api", START, 0)
    await redis_bus._command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(0)
    await asyncio.gather(*(queued(redis_bus) for _ in range(5)))
    assert (await redis_bus.depths(["chat"]))["chat"].waiting == 10
    assert await redis_bus.replies("api", START, 0) == (START, [])


async def test_no_redis_at_all_is_unavailable(redis_server: RedisServer) -> None:
    async with RedisBus("redis://127.0.0.1:1/0", KEYS) as bus:
        with pytest.raises(BusUnavailable):
            await bus.ping()
        with pytest.raises(BusUnavailable):
            await bus.wait("p", START, 1)


async def test_a_full_redis_refuses_new_requests_and_drains_the_old_ones(redis_bus: RedisBus) -> None:
    running, token = await dispatched(redis_bus)
    claim, _ = await claimed(redis_bus)
    waiting = await queued(redis_bus)
    await redis_bus._command("CONFIG", "SET", "maxmemory", "1")
    try:
        refused = make_request()
        with pytest.raises(BusFull):
            await redis_bus.submit(refused, 1000)
        assert await redis_bus.record(refused.id) is None
        assert await redis_bus.lead("planner", TTL_S) == token
        assert await redis_bus.beat(heartbeat("p"), TTL_S)
        assert await redis_bus.emit("p", [frame(running, 0, (1000,))]) == [True]
        assert await redis_bus.hand_off("p", handing_off(running))
        assert len(await taken(redis_bus, Stage.DECODE, "d", 1)) == 1
        assert await redis_bus.emit("d", [frame(running, 1, (2,), DONE)]) == [True]
        assert await redis_bus.dispatch(claim, work_of(claim), token)
        assert await redis_bus.requeue("p", token) == [claim.request.id]
        assert len(await redis_bus.claim("chat", "planner", 5)) == 2
        assert len(await redis_bus.reclaim(["chat"], "planner")) == 2
        assert await redis_bus.end(waiting.id, CANCELLED)
        await redis_bus.send("p", KeepTrace("abc"))
    finally:
        await redis_bus._command("CONFIG", "SET", "maxmemory", "0")
    assert await redis_bus.submit(refused, 1000) is Submitted.ACCEPTED


async def test_an_answer_that_was_lost_loses_no_work(redis_bus: RedisBus) -> None:
    claim, token = await claimed(redis_bus)
    await redis_bus.dispatch(claim, work_of(claim), token)
    cursor_before_the_answer = dict(redis_bus._taken)
    await taken(redis_bus, Stage.PREFILL, "p", 5)
    redis_bus._taken = cursor_before_the_answer
    assert await taken(redis_bus, Stage.PREFILL, "p", 5) == [work_of(claim)]


async def test_read_streams_stay_small(redis_bus: RedisBus) -> None:
    work, _ = await dispatched(redis_bus)
    after = control = START
    for position in range(20):
        await redis_bus.emit("p", [frame(work, position, (position,))])
        await redis_bus.send("p", KeepTrace(f"{position}"))
        after, _ = await redis_bus.replies("api", after, 1)
        control, *_ = await redis_bus.wait("p", control, 1)
    await taken(redis_bus, Stage.PREFILL, "p", 5)
    assert await redis_bus._command("XLEN", KEYS.replies("api")) <= 1
    assert await redis_bus._command("XLEN", KEYS.control("p")) <= 1
    assert await redis_bus._command("XLEN", KEYS.work("prefill", "p")) == 0


async def test_streams_of_processes_that_are_gone_go_too(redis_bus: RedisBus) -> None:
    work, _ = await dispatched(redis_bus)
    await redis_bus.emit("p", [frame(work, 0, (1,))])
    await redis_bus.end(work.request.id, CANCELLED)
    for key in (KEYS.replies("api"), KEYS.control("p"), KEYS.control("admission")):
        assert 0 < await redis_bus._command("TTL", key) <= 3600


async def test_a_step_of_many_requests_is_one_entry_for_each_api(redis_bus: RedisBus) -> None:
    works = [(await dispatched(redis_bus, reply_to=f"api{number % 2}"))[0] for number in range(8)]
    before = [await redis_bus._command("XLEN", KEYS.replies(f"api{number}")) for number in range(2)]
    assert all(await redis_bus.emit("p", [frame(work, 0, (1,)) for work in works]))
    after = [await redis_bus._command("XLEN", KEYS.replies(f"api{number}")) for number in range(2)]
    assert [late - early for late, early in zip(after, before, strict=True)] == [1, 1]
    assert await redis_bus._command("XLEN", KEYS.progress) == 1


async def test_an_ended_request_leaves_only_its_record(redis_bus: RedisBus) -> None:
    work, _ = await handed_off(redis_bus)
    await redis_bus.emit("d", [frame(work, 1, (1,), DONE)])
    assert await redis_bus._command("HEXISTS", KEYS.record(work.request.id), "work") == 0
    await redis_bus.sweep(1e11)
    left = await redis_bus._command("KEYS", f"*{work.request.id}*")
    assert left == []


async def test_many_held_requests_are_reclaimed_in_order(redis_bus: RedisBus) -> None:
    held = [(await queued(redis_bus)).id for _ in range(230)]
    await lead(redis_bus)
    await redis_bus.claim("chat", "planner", 1000)
    await redis_bus.resign("planner")
    await lead(redis_bus, "other")
    assert [claim.request.id for claim in await redis_bus.reclaim(["chat"], "other")] == held


async def test_consumers_of_old_planners_are_removed(redis_bus: RedisBus) -> None:
    await claimed(redis_bus)
    await redis_bus.resign("planner")
    await lead(redis_bus, "other")
    await redis_bus.reclaim(["chat"], "other")
    consumers = await redis_bus._command("XINFO", "CONSUMERS", KEYS.requests("chat"), PLANNERS)
    assert len(consumers) == 1


async def test_a_dispatch_without_a_worker_is_an_error(redis_bus: RedisBus) -> None:
    claim, token = await claimed(redis_bus)
    work = work_of(claim)
    nowhere = type(work)(work.request, decision(None, None), 1)
    with pytest.raises(ValueError, match="prefill worker"):
        await redis_bus.dispatch(claim, nowhere, token)
    with pytest.raises(ValueError, match="decode worker"):
        await redis_bus.hand_off("p", nowhere)


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_under_test_are_there(request: pytest.FixtureRequest, name: str) -> None:
    assert server_named(request, name).pid is not None
