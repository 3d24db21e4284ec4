from dataclasses import replace

from common.bus.interface import Bus, DeadLetter
from common.messages import End, Stage, State, Verdict
from tests.common.bus.steps import (
    TTL_S,
    again,
    claimed,
    decision,
    dispatched,
    eventually,
    frame,
    frames_told,
    handed_off,
    heartbeat,
    lead,
    stored,
    taken,
    work_of,
)


async def test_a_worker_is_alive_while_it_beats(bus: Bus) -> None:
    assert await bus.workers() == {}
    assert await bus.beat(heartbeat("p"), TTL_S)
    assert await bus.workers() == {"p": heartbeat("p")}


async def test_workers_that_are_known_can_be_left_out(bus: Bus) -> None:
    for name in ("p", "d"):
        await bus.beat(heartbeat(name), TTL_S)
    assert await bus.workers(but=["p", "unknown"]) == {"d": heartbeat("d")}
    assert await bus.workers(but={"p", "d"}) == {}


async def test_every_heartbeat_is_seen(bus: Bus) -> None:
    for running in (1, 2, 2, 3):
        state = replace(heartbeat("p"), running=running)
        await bus.beat(state, TTL_S)
        assert await bus.workers() == {"p": state}
    await bus.leave("p")
    assert await bus.workers() == {"p": None}
    await bus.beat(state, TTL_S)
    assert await bus.workers() == {"p": state}


async def test_a_silent_worker_is_known_without_a_state(bus: Bus) -> None:
    await bus.beat(heartbeat("p"), 0.02)
    assert await eventually(bus.workers, lambda workers: workers["p"] is None) == {"p": None}


async def test_a_worker_that_leaves_is_silent_at_once(bus: Bus) -> None:
    await bus.beat(heartbeat("p"), TTL_S)
    await bus.leave("p")
    assert await bus.workers() == {"p": None}


async def test_a_buried_worker_is_forgotten_and_told_to_stop(bus: Bus) -> None:
    token = await lead(bus)
    await bus.beat(heartbeat("p"), TTL_S)
    assert await bus.requeue("p", token) == []
    assert await bus.workers() == {}
    assert not await bus.beat(heartbeat("p"), TTL_S)
    assert await bus.workers() == {}


async def test_requests_of_a_dead_worker_go_back_with_their_tokens(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5, 6), first_token_s=1.25)])
    assert await bus.requeue("p", token) == [work.request.id]
    record = await stored(bus, work.request.id)
    assert (record.state, record.attempt, record.generated) == (State.QUEUED, 2, (5, 6))
    assert (record.prefill_worker, record.decode_worker) == (None, None)
    (claim,) = await bus.claim("chat", "planner", 5)
    assert (claim.request, claim.attempt, claim.generated) == (work.request, 2, (5, 6))
    assert claim.first_token_s == 1.25


async def test_a_deferral_survives_a_dead_worker(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.note(claim, decision(None, None, Verdict.DEFERRED), token)
    await bus.dispatch(claim, work_of(claim), token)
    await bus.requeue("p", token)
    (retried,) = await bus.claim("chat", "planner", 5)
    assert retried.deferred_s == 100.5


async def test_a_dead_workers_stream_is_gone(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.dispatch(claim, work_of(claim), token)
    await bus.requeue("p", token)
    assert await taken(bus, Stage.PREFILL, "p", 5) == []
    assert await bus.inflight("p") == []


async def test_other_workers_keep_theirs(bus: Bus) -> None:
    work, token = await handed_off(bus)
    await bus.beat(heartbeat("d"), TTL_S)
    assert await bus.requeue("p", token) == []
    assert [record.request.id for record in await bus.inflight("d")] == [work.request.id]
    assert await bus.emit("d", [frame(work, 1, (7,))]) == [True]
    assert list(await bus.workers()) == ["d"]


async def test_a_decode_workers_requests_go_back_too(bus: Bus) -> None:
    work, token = await handed_off(bus)
    assert await bus.requeue("d", token) == [work.request.id]
    assert await bus.emit("d", [frame(work, 1, (7,))]) == [False]
    retried = await again(bus, "chat", token, "p", "d2")
    assert (retried.attempt, retried.generated) == (2, (1000,))


async def test_a_request_that_kills_two_workers_is_a_dead_letter(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5,))])
    await bus.requeue("p", token)
    await again(bus, "chat", token, "q")
    assert await bus.requeue("q", token) == []
    end = End(State.FAILED, "worker_died")
    record = await stored(bus, work.request.id)
    assert (record.state, record.end, record.generated) == (State.FAILED, end, (5,))
    closing = (await frames_told(bus))[-1]
    assert (closing.id, closing.attempt, closing.position, closing.tokens, closing.end) == (
        record.request.id,
        2,
        1,
        (),
        end,
    )
    (letter,) = await bus.dead_letters()
    assert letter == DeadLetter(work.request.id, "worker_died", letter.time_s)
    assert await bus.claim("chat", "planner", 5) == []


async def test_ended_requests_do_not_come_back(bus: Bus) -> None:
    work, token = await dispatched(bus)
    await bus.emit("p", [frame(work, 0, (5,), End(State.DONE, "stop"))])
    assert await bus.requeue("p", token) == []
    assert (await stored(bus, work.request.id)).state is State.DONE


async def test_everything_of_a_busy_worker_comes_back(bus: Bus) -> None:
    token = await lead(bus)
    names = set()
    for _ in range(230):
        claim, _ = await claimed(bus)
        await bus.dispatch(claim, work_of(claim), token)
        names.add(claim.request.id)
    assert set(await bus.requeue("p", token)) == names
    assert {claim.request.id for claim in await bus.claim("chat", "planner", 500)} == names
