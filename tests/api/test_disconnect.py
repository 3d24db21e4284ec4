import asyncio

import pytest

from common.messages import State
from tests.api.conftest import Api, Serve
from tests.api.pipeline import deferred, eventually
from tests.api.test_generate import events


async def ended_as_cancelled(api: Api, request_id: str) -> None:
    await api.pipeline.cancelled(request_id)
    record = await api.bus.record(request_id)
    assert record is not None
    assert record.state is State.CANCELLED
    assert record.end is not None
    assert record.end.reason == "client_disconnected"
    await eventually(lambda: api.state.ingress.open == 0)


async def test_a_reader_who_leaves_a_stream_cancels_it_within_a_second(serve: Serve) -> None:
    async with serve(pause_after=2) as api:
        body = {"prompt": "some text to stream", "stream": True}
        async with api.client.stream("POST", "/generate", json=body) as response:
            async for event in events(response):
                if event.get("event") == "token":
                    break
        await ended_as_cancelled(api, response.headers["x-request-id"])


async def test_leaving_a_stream_that_is_silent_cancels_it_too(serve: Serve) -> None:
    async with serve(decide=deferred) as api:
        body = {"prompt": "x", "stream": True}
        async with api.client.stream("POST", "/generate", json=body) as response:
            assert response.status_code == 200
        await ended_as_cancelled(api, response.headers["x-request-id"])


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_leaving_before_the_whole_answer_cancels_it(serve: Serve, path: str) -> None:
    async with serve(pause_after=1) as api:
        waiting = asyncio.create_task(api.client.post(path, json={"prompt": "some text"}))
        await api.pipeline.paused.wait()
        waiting.cancel()
        await ended_as_cancelled(api, api.pipeline.works[0].request.id)


async def test_an_answer_that_was_read_to_its_end_is_not_cancelled(api: Api) -> None:
    response = await api.client.post("/generate", json={"prompt": "x", "stream": True})
    record = await api.bus.record(response.headers["x-request-id"])
    assert record is not None
    assert record.state is State.DONE
    assert api.pipeline.controls == []
