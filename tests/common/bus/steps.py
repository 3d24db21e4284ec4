"""What most tests of a bus do on the way to what they are about."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from common.bus.interface import START, Bus, Claim, Submitted
from common.messages import (
    Decided,
    Decision,
    End,
    Frame,
    HandOff,
    Record,
    Reply,
    Request,
    Stage,
    State,
    Verdict,
    Work,
    WorkerState,
)
from tests.factories import FAST, make_request

DONE = End(State.DONE, "stop")
CANCELLED = End(State.CANCELLED, "client_gone")
TTL_S = 60.0

T = TypeVar("T")


async def lead(bus: Bus, planner: str = "planner") -> int:
    token = await bus.lead(planner, TTL_S)
    assert token is not None
    return token


async def queued(bus: Bus, **changes: Any) -> Request:
    request = make_request(**changes)
    assert await bus.submit(request, 1000) is Submitted.ACCEPTED
    return request


async def taken(bus: Bus, stage: Stage, worker: str, room: int) -> list[Work]:
    """What a worker takes of a stage, without waiting."""
    woken = await bus.wait(worker, START, 0, room)
    assert all(of is stage for of, _ in woken.work)
    return [work for _, work in woken.work]


async def claimed(bus: Bus, **changes: Any) -> tuple[Claim, int]:
    request, token = await queued(bus, **changes), await lead(bus)
    (claim,) = await bus.claim(request.tier, "planner", 1)
    return claim, token


async def dispatched(bus: Bus, prefill: str = "p", decode: str = "d", **changes: Any) -> tuple[Work, int]:
    """A request on its prefill worker, which has taken it."""
    claim, token = await claimed(bus, **changes)
    assert await bus.dispatch(claim, work_of(claim, prefill, decode), token)
    (work,) = await taken(bus, Stage.PREFILL, prefill, 8)
    return work, token


async def handed_off(bus: Bus, **changes: Any) -> tuple[Work, int]:
    """A request with its first token, on its decode worker, which has taken it."""
    work, token = await dispatched(bus, **changes)
    assert await bus.emit("p", [frame(work, 0, (1000,))]) == [True]
    assert await bus.hand_off("p", handing_off(work))
    (work,) = await taken(bus, Stage.DECODE, "d", 8)
    return work, token


async def again(bus: Bus, tier: str, token: int, prefill: str, decode: str = "d") -> Work:
    """Dispatch the next request of the tier to other workers."""
    (claim,) = await bus.claim(tier, "planner", 1)
    assert await bus.dispatch(claim, work_of(claim, prefill, decode), token)
    (work,) = await taken(bus, Stage.PREFILL, prefill, 8)
    return work


async def stored(bus: Bus, request_id: str) -> Record:
    record = await bus.record(request_id)
    assert record is not None
    return record


async def told(bus: Bus, api: str = "api") -> Sequence[Reply]:
    """Everything that an api has been told."""
    return (await bus.replies(api, START, 0))[1]


async def frames_told(bus: Bus, api: str = "api") -> list[Frame]:
    return [reply for reply in await told(bus, api) if isinstance(reply, Frame)]


async def decisions_told(bus: Bus, api: str = "api") -> list[Decided]:
    return [reply for reply in await told(bus, api) if isinstance(reply, Decided)]


async def eventually(read: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
    """The first answer that holds, asked every few milliseconds for at most ten seconds."""
    async with asyncio.timeout(10):
        while not holds(answer := await read()):
            await asyncio.sleep(0.005)
    return answer


def decision(prefill: str | None = "p", decode: str | None = "d", verdict: Verdict = Verdict.ADMITTED) -> Decision:
    return Decision(verdict, "fits", cycle=1, decided_s=100.5, prefill_worker=prefill, decode_worker=decode)


def work_of(claim: Claim, prefill: str = "p", decode: str = "d") -> Work:
    return Work(claim.request, decision(prefill, decode), claim.attempt, claim.generated)


def handing_off(work: Work) -> Work:
    kv = HandOff("p", {"remote_block_ids": [1, 2], "remote_host": "127.0.0.1"}, 100, 101.0, 131.0)
    return Work(work.request, work.decision, work.attempt, (1000,), kv)


def frame(work: Work, position: int, tokens: Sequence[int], end: End | None = None, **notes: float) -> Frame:
    return Frame(work.request.id, work.attempt, position, tuple(tokens), 101.0, end, notes)


def heartbeat(worker: str, prefers: Stage = Stage.PREFILL) -> WorkerState:
    return WorkerState(
        id=worker,
        prefers=prefers,
        may=(Stage.PREFILL, Stage.DECODE),
        fingerprint="f",
        model="m",
        max_model_len=4096,
        block_size=16,
        total_blocks=100,
        free_blocks=100,
        max_seqs=8,
        max_batch_tokens=512,
        queued=0,
        queued_tokens=0,
        running=0,
        running_tokens=0,
        step_ms=1.0,
        latency=FAST,
        draining=False,
        ready=True,
        url="http://127.0.0.1:1",
        started_s=1.0,
        beat_s=2.0,
    )
