import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from api.relay import AT_ONCE, Arrival, Relay, Waiter
from common.bus.interface import Cursor, IngressBus
from common.errors import BusUnavailable
from common.messages import Decided, Decision, Frame, Reply, Verdict, Work
from tests.api.conftest import Serve
from tests.api.faults import FaultyBus, frame_at, is_end
from tests.api.pipeline import eventually
from tests.api.test_bad_input import check_problem
from tests.api.test_generate import collect

PROMPT = {"prompt_token_ids": [40, 41, 42, 43, 44, 45]}


async def test_waiters_survive_an_outage_of_the_queue(serve: Serve) -> None:
    bus = FaultyBus()
    async with serve(bus=bus, pause_after=2) as api:
        stream = asyncio.create_task(collect(api, {**PROMPT, "stream": True}))
        await api.pipeline.paused.wait()
        bus.down = BusUnavailable
        await eventually(lambda: not api.state.ingress.relay.reading.is_set())
        api.pipeline.gate.set()
        bus.down = None
        received = await stream
        tokens = [json.loads(event["data"])["token_ids"] for event in received if event.get("event") == "token"]
        assert tokens == [[40], [41], [42], [43], [44], [45]]
        assert received[-1]["event"] == "done"


async def test_a_lost_frame_is_made_good_from_the_record(serve: Serve) -> None:
    bus = FaultyBus()
    bus.loses = frame_at(2)
    async with serve(bus=bus) as api:
        response = await api.client.post("/generate", json=PROMPT)
        assert response.json()["token_ids"] == PROMPT["prompt_token_ids"]


async def test_a_lost_decision_is_made_good_from_the_record(serve: Serve) -> None:
    bus = FaultyBus()

    def loses(reply: Reply) -> bool:
        return isinstance(reply, Decided) or frame_at(0)(reply)

    bus.loses = loses
    async with serve(bus=bus) as api:
        body = (await api.client.post("/generate", json=PROMPT)).json()
        assert body["decision"]["verdict"] == "admitted"
        assert body["token_ids"] == PROMPT["prompt_token_ids"]


async def test_a_lost_end_is_found_in_the_record(serve: Serve) -> None:
    bus = FaultyBus()
    bus.loses = is_end
    async with serve(bus=bus) as api:
        api.state.ingress.check_s = 0.05
        response = await api.client.post("/generate", json=PROMPT)
        assert response.json()["token_ids"] == PROMPT["prompt_token_ids"]


async def test_tokens_that_nobody_has_any_more_are_a_clear_error(serve: Serve) -> None:
    bus = FaultyBus()

    def script(work: Work) -> list[list[int]]:
        bus.forgets.add(work.request.id)
        return [[40], [41], [42]]

    bus.loses = frame_at(1)
    async with serve(bus=bus, script=script) as api:
        problem = check_problem(await api.client.post("/generate", json=PROMPT), 503)
        assert problem["code"] == "record_lost"


async def test_a_request_that_the_queue_lost_before_its_first_token_is_sent_again(serve: Serve) -> None:
    bus = FaultyBus()
    async with serve(bus=bus) as api:
        api.state.ingress.check_s = 0.05
        bus.loses, bus.record_answers = lambda reply: True, False
        waiting = asyncio.create_task(api.client.post("/generate", json=PROMPT))
        await eventually(lambda: len(api.pipeline.works) == 1)
        request_id = api.pipeline.works[0].request.id
        await eventually(lambda: bus._records[request_id].state.ended)
        await bus.sweep(1e12)
        bus.loses, bus.record_answers = lambda reply: False, True
        response = await waiting
        assert response.json()["token_ids"] == PROMPT["prompt_token_ids"]
        assert len(api.pipeline.works) == 2


class Burst:
    """The tokens of a step in one answer, then nothing."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._answers = [replies]

    async def replies(self, api: str, after: Cursor, block_s: float) -> tuple[Cursor, Sequence[Reply]]:
        if not self._answers:
            await asyncio.sleep(60)
        return "1-1", self._answers.pop()


async def test_what_is_new_gets_its_turn_between_the_tokens_of_a_step() -> None:
    frames = [Frame("r", 1, position, (7,), 0.0) for position in range(8 * AT_ONCE)]
    relay = Relay(cast(IngressBus, Burst(frames)), "api", time.time)
    waiter, turns = relay.open("r"), 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(relay.run()), group.create_task(other_work())]
        taken: list[Arrival | None] = []
        while len(taken) < len(frames):
            taken.append(await waiter.next(5.0))
        for task in tasks:
            task.cancel()
    assert [one.reply for one in taken if one is not None] == frames
    assert turns >= 8


async def test_what_begins_an_answer_passes_what_continues_others(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[Reply] = []
    monkeypatch.setattr(Waiter, "put", lambda _self, reply, _now_s: passed.append(reply))
    decided = Decided("new", 1, Decision(Verdict.ADMITTED, "feasible", 1, 1.0))
    tokens: list[Reply] = [Frame(name, 1, 3, (7,), 0.0) for name in ("a", "b", "c", "d")]
    begun: list[Reply] = [decided, Frame("new", 1, 0, (7,), 0.0), Frame("new", 1, 1, (8,), 0.0)]
    moved: list[Reply] = [Frame("e", 1, 3, (7,), 0.0), replace(decided, id="e", attempt=2)]
    relay = Relay(cast(IngressBus, Burst([*tokens[:2], *moved, *tokens[2:], *begun])), "api", time.time)
    for name in ("a", "b", "c", "d", "e", "new"):
        relay.open(name)
    running = asyncio.create_task(relay.run())
    await eventually(lambda: len(passed) == 9)
    running.cancel()
    assert passed == [*begun, *tokens[:2], *moved, *tokens[2:]]


async def test_a_waiter_gives_up_in_time_and_can_be_woken() -> None:
    waiter = Waiter()
    assert await waiter.next(0.001) is None
    asyncio.get_running_loop().call_soon(waiter.wake)
    woken = await waiter.next(30.0)
    assert woken is not None
    assert woken.reply is None
