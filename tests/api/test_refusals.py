import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from common.bus.memory import MemoryBus
from common.errors import BusFull, BusUnavailable
from common.messages import End, Overload, Request, Sampling, State
from common.tiers import Tiers, load_tiers
from tests.api.conftest import Api, Serve
from tests.api.faults import FaultyBus
from tests.api.pipeline import deferred, eventually, rejected, unattainable
from tests.api.test_bad_input import check_problem
from tests.api.test_generate import collect, events


def tiny_queues() -> Tiers:
    tiers = load_tiers()
    return Tiers(tuple(replace(tier, max_queued=1) for tier in tiers.tiers), tiers.default)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_rejection_is_a_429_with_the_planners_retry_time(serve: Serve, path: str, stream: bool) -> None:
    async with serve(decide=rejected) as api:
        response = await api.client.post(path, json={"prompt": "x", "stream": stream})
        problem = check_problem(response, 429)
        assert response.headers["retry-after"] == "7"
        assert problem["code"] == "slo_not_possible"
        assert problem["decision"]["reason"] == "overload"
        assert response.headers["x-request-id"] == problem["request_id"]


async def test_an_slo_that_no_engine_can_meet_is_a_422_that_says_what_is_possible(serve: Serve) -> None:
    async with serve(decide=unattainable) as api:
        response = await api.client.post("/generate", json={"prompt": "x"})
        problem = check_problem(response, 422)
        assert "TTFT is at least 17.1 ms" in problem["detail"]
        assert "retry-after" not in response.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_a_429_with_retry_after(serve: Serve, stream: bool) -> None:
    async with serve(decide=deferred, tiers=tiny_queues()) as api:
        first = asyncio.create_task(api.client.post("/generate", json={"prompt": "x"}))
        await eventually(lambda: api.state.ingress.open == 1)
        response = await api.client.post("/generate", json={"prompt": "x", "stream": stream})
        assert check_problem(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize(("fault", "code"), [(BusUnavailable, "queue_unavailable"), (BusFull, "queue_out_of_memory")])
async def test_a_queue_that_fails_is_a_503_with_retry_after(serve: Serve, fault: Any, code: str) -> None:
    bus = FaultyBus()
    async with serve(bus=bus) as api:
        bus.down = fault
        response = await api.client.post("/generate", json={"prompt": "x", "stream": True})
        assert check_problem(response, 503)["code"] == code
        assert response.headers["retry-after"]
        bus.down = None


async def test_a_request_that_got_in_although_the_answer_was_lost_is_cancelled(serve: Serve) -> None:
    bus = FaultyBus()
    async with serve(bus=bus, decide=deferred) as api:
        bus.submit_answers = False
        check_problem(await api.client.post("/generate", json={"prompt": "x"}), 503)
        depth = await bus.depths(["chat"])
        assert depth["chat"].waiting == 0


async def test_a_wait_over_the_tiers_patience_is_refused_at_once(serve: Serve) -> None:
    bus = MemoryBus()
    old = Request("old", "chat", "t", 1.0, (1,), Sampling(1), None, Overload.DEFER, 1.0, 1e12)
    await bus.submit(old, 10)
    async with serve(bus=bus, decide=deferred) as api:
        await eventually(lambda: api.state.ingress.wait_s("chat") > 0)
        response = await api.client.post("/generate", json={"prompt": "x", "tier": "chat"})
        assert check_problem(response, 429)["code"] == "wait_over_patience"
        assert int(response.headers["retry-after"]) == 60
        check_problem(await api.client.get("/requests/old"), 404)


async def end_first(api: Api, end: End) -> None:
    """End the only open request from outside."""
    await eventually(lambda: api.state.ingress.open == 1)
    depth = await api.bus.depths(["chat"])
    assert depth["chat"].waiting == 1
    await api.bus.end(next(iter(api.state.ingress.relay.waiting)), end)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (End(State.EXPIRED, "patience_exceeded", "no capacity", retry_after_s=3.0), 503),
        (End(State.FAILED, "worker_died"), 503),
        (End(State.FAILED, "worker_error", "its own words"), 502),
        (End(State.FAILED, "refused_by_engine", "its own words"), 422),
        (End(State.CANCELLED, "cancelled_by_client"), 409),
    ],
)
async def test_each_end_without_an_answer_is_a_problem_with_its_reason(serve: Serve, end: End, status: int) -> None:
    async with serve(decide=deferred) as api:
        waiting = asyncio.create_task(api.client.post("/generate", json={"prompt": "x"}))
        await end_first(api, end)
        response = await waiting
        problem = check_problem(response, status)
        assert problem["code"] == end.reason
        assert "its own words" not in response.text
        assert ("retry-after" in response.headers) == (status == 503)


async def test_a_stream_that_was_deferred_and_expires_ends_with_an_error_event(serve: Serve) -> None:
    body = {"prompt": "x", "stream": True}
    async with serve(decide=deferred) as api, api.client.stream("POST", "/generate", json=body) as response:
        received = aiter(events(response))
        assert "retry" in await anext(received)
        assert (await anext(received))["event"] == "decision"
        await end_first(api, End(State.EXPIRED, "patience_exceeded", "no capacity", retry_after_s=3.0))
        rest = [event async for event in received]
        assert [event.get("event") for event in rest] == ["error"]
        error = json.loads(rest[0]["data"])
        assert (error["code"], error["retry_after_s"]) == ("patience_exceeded", 3.0)


async def test_a_failure_in_mid_stream_ends_it_with_an_error_event(serve: Serve) -> None:
    async with serve(pause_after=1) as api:
        stream = asyncio.create_task(collect(api, {"prompt": "some text", "stream": True}))
        await api.pipeline.paused.wait()
        await api.bus.end(api.pipeline.works[0].request.id, End(State.FAILED, "worker_died"))
        received = await stream
        assert [event.get("event") for event in received[1:]] == ["decision", "token", "error"]
        assert json.loads(received[-1]["data"])["status"] == 503
