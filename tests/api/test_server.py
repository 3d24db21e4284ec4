import asyncio
import json
import socket

import httpx
import pytest

from api.app import create_app
from api.context import Context
from api.server import Server
from common.bus.memory import MemoryBus
from common.messages import State
from common.settings import Settings
from tests.api.conftest import Serve
from tests.api.pipeline import eventually
from tests.api.test_bad_input import check_problem
from tests.api.test_generate import collect, events


async def test_draining_lets_open_answers_end_and_refuses_new_ones(serve: Serve) -> None:
    async with serve(pause_after=1) as api:
        stream = asyncio.create_task(collect(api, {"prompt": "some text", "stream": True}))
        await api.pipeline.paused.wait()
        draining = asyncio.create_task(api.server.drain(20.0))
        await eventually(lambda: bool(api.state.drain.draining))

        refused = await api.client.post("/generate", json={"prompt": "x"})
        assert check_problem(refused, 503)["code"] == "draining"
        assert refused.headers["connection"] == "close"
        assert refused.headers["retry-after"]
        readiness = await api.client.get("/readyz")
        assert (readiness.status_code, "accepting" in readiness.json()["missing"]) == (503, True)

        api.pipeline.gate.set()
        assert (await stream)[-1]["event"] == "done"
        await draining
        with pytest.raises(httpx.ConnectError):
            await api.client.get("/healthz")


async def test_what_is_still_open_when_patience_ends_is_told_so_and_cancelled(serve: Serve) -> None:
    body = {"prompt": "some text", "stream": True}
    async with serve(pause_after=1) as api, api.client.stream("POST", "/generate", json=body) as response:
        received = aiter(events(response))
        while (last := await anext(received)).get("event") != "token":
            pass
        draining = asyncio.create_task(api.server.drain(0.0))
        last = [event async for event in received][-1]
        await draining
        assert (last["event"], json.loads(last["data"])["code"]) == ("error", "api_shutdown")
        record = await api.bus.record(api.pipeline.works[0].request.id)
        assert record is not None
        assert record.state is State.FAILED


async def test_a_port_that_is_taken_is_an_oserror(context: Context, settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=str(port)):
            await Server(create_app(settings, MemoryBus(), context), "127.0.0.1", port).open()


async def test_it_stops_at_once_when_nothing_is_open(serve: Serve) -> None:
    async with serve() as api, asyncio.timeout(20):
        await api.server.drain(1000.0)
