import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from common.bus.interface import Submitted
from common.bus.redis import RedisBus
from common.messages import End, State
from common.offline.batch import Batch, Status, request_id
from common.offline.endpoint import load_endpoint
from common.offline.run import Tools
from common.offline.runner import MAX_STARTS, run_slice
from common.settings import Settings
from tests.common.offline.offline import CHAT, MODEL, Stores, make_input, open_stores
from tests.pipeline import Pipeline, running_pipeline

LONG = {"prompt": "x", "max_tokens": 1000, "ignore_eos": True}


@pytest.fixture
async def stores(redis_url: str) -> AsyncIterator[Stores]:
    stores = open_stores(Settings(redis_url=redis_url, model=str(MODEL), batch_concurrency=3, batch_lock_s=2))
    yield stores
    await stores.redis.aclose()


@pytest.fixture
async def bus(stores: Stores) -> AsyncIterator[RedisBus]:
    async with RedisBus.connect(stores.settings) as bus:
        yield bus


@pytest.fixture
async def pipeline(bus: RedisBus) -> AsyncIterator[Pipeline]:
    async with running_pipeline(bus) as pipeline:
        yield pipeline


def make_tools(stores: Stores, bus: RedisBus, **changes: Any) -> Tools:
    tools = Tools(stores.batches, stores.files, bus, load_endpoint(stores.settings), stores.settings)
    return replace(tools, **changes)


async def run(stores: Stores, bus: RedisBus, batch: Batch, **changes: Any) -> Batch:
    """As the task does, slice after slice."""
    async with asyncio.timeout(30):
        while await run_slice(batch.spec.id, make_tools(stores, bus, **changes)):
            pass
    return await stores.load(batch)


@pytest.mark.usefixtures("pipeline")
async def test_results_and_errors_come_in_the_order_of_the_lines(stores: Stores, bus: RedisBus) -> None:
    good = {"prompt": "def f(", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    lines = make_input(good, {"prompt": ""}, good, {"prompt": "x", "tier": "chat"}, good)
    batch = await run(stores, bus, await stores.create(lines + b"{broken\n" + lines.splitlines()[0]))
    assert (batch.status, batch.total, batch.completed, batch.failed) == (Status.COMPLETED, 7, 3, 4)
    output = await stores.entries(batch.output_file_id)
    assert [entry["custom_id"] for entry in output] == ["line-1", "line-3", "line-5"]
    response = output[0]["response"]
    assert (response["status_code"], output[0]["error"]) == (200, None)
    assert response["body"]["usage"]["completion_tokens"] == 5
    assert response["body"]["choices"][0]["finish_reason"] == "length"
    errors = await stores.entries(batch.error_file_id)
    assert [(entry["custom_id"], (entry["error"] or {}).get("code")) for entry in errors] == [
        ("line-2", None),
        ("line-4", None),
        (None, "invalid_json_line"),
        ("line-1", "duplicate_custom_id"),
    ]
    assert [errors[n]["response"]["status_code"] for n in (0, 1)] == [422, 422]
    assert errors[0]["response"]["body"]["error"]["param"] == "prompt"
    assert errors[2]["response"] is None


@pytest.mark.usefixtures("pipeline")
async def test_chats_run_as_best_effort_in_the_batch_tier_and_nobody_waits_for_their_tokens(
    stores: Stores, bus: RedisBus
) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "ignore_eos": True}
    batch = await run(stores, bus, await stores.create(make_input(body, endpoint=CHAT), CHAT))
    entry = (await stores.entries(batch.output_file_id))[0]
    assert entry["response"]["body"]["object"] == "chat.completion"
    assert entry["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    record = await bus.record(request_id(batch.spec.id, 1))
    assert record is not None
    request = record.request
    assert (request.tier, request.slo, request.reply_to, request.tenant) == ("batch", None, "", "ada")


@pytest.mark.usefixtures("pipeline")
async def test_a_stop_string_ends_a_line_in_the_pipeline_too(stores: Stores, bus: RedisBus) -> None:
    greedy = {**LONG, "prompt": "ab", "temperature": 0}
    whole = await run(stores, bus, await stores.create(make_input(greedy | {"max_tokens": 8})))
    text = (await stores.entries(whole.output_file_id))[0]["response"]["body"]["choices"][0]["text"]
    batch = await run(stores, bus, await stores.create(make_input(greedy | {"stop": text[2:4]})))
    choice = (await stores.entries(batch.output_file_id))[0]["response"]["body"]["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(text[2:4])], "stop")
    record = await bus.record(request_id(batch.spec.id, 1))
    assert record is not None
    assert len(record.generated) < 1000


async def test_no_more_lines_are_in_the_pipeline_than_allowed_and_the_next_slice_goes_on_with_them(
    stores: Stores, bus: RedisBus
) -> None:
    batch = await stores.create(make_input(*[{"prompt": "x", "max_tokens": 2}] * 8))
    three_wait = asyncio.Event()

    async def watch() -> None:
        while (await bus.depths(["batch"]))["batch"].waiting < 3:
            await asyncio.sleep(0.01)
        three_wait.set()

    watching = asyncio.create_task(watch())
    assert await run_slice(batch.spec.id, make_tools(stores, bus, stopping=three_wait.is_set))
    await watching
    assert (await bus.depths(["batch"]))["batch"].waiting == 3
    assert not await stores.batches.locked(batch.spec.id)
    async with running_pipeline(bus) as pipeline:
        batch = await run(stores, bus, batch)
        assert (batch.status, batch.completed) == (Status.COMPLETED, 8)
        attempts = [(await pipeline.ended(request_id(batch.spec.id, n))).attempt for n in range(1, 9)]
    assert attempts == [1] * 8


async def test_a_full_queue_is_waited_for(stores: Stores, bus: RedisBus) -> None:
    class Full(RedisBus):
        refusals = 3

        async def submit(self, request: Any, max_queued: int) -> Submitted:
            Full.refusals -= 1
            return await super().submit(request, 0 if Full.refusals >= 0 else max_queued)

    async with Full.connect(stores.settings) as full, running_pipeline(bus):
        batch = await run(stores, full, await stores.create(make_input({"prompt": "x", "max_tokens": 2})))
    assert (batch.status, batch.completed) == (Status.COMPLETED, 1)
    assert Full.refusals < 0


async def test_cancelling_ends_what_runs_and_keeps_what_is_done(stores: Stores, bus: RedisBus) -> None:
    batch = await stores.create(make_input({"prompt": "x", "max_tokens": 2}, *[LONG] * 5))
    async with running_pipeline(bus, tpot_scale=1.0):
        running = asyncio.create_task(run(stores, bus, batch))
        async with asyncio.timeout(20):
            while (await stores.load(batch)).completed < 1:
                await asyncio.sleep(0.01)
        await stores.batches.move(batch.spec.id, (Status.IN_PROGRESS,), Status.CANCELLING)
        batch = await running
    assert batch.status is Status.CANCELLED
    assert batch.completed >= 1
    output = await stores.entries(batch.output_file_id)
    assert output[0]["custom_id"] == "line-1"
    records = [await bus.record(request_id(batch.spec.id, n)) for n in range(1, 7)]
    assert {record.state for record in records if record is not None} <= {State.DONE, State.CANCELLED}


async def test_a_batch_that_was_cancelled_before_it_began_sends_nothing(stores: Stores, bus: RedisBus) -> None:
    batch = await stores.create(make_input({"prompt": "x"}))
    await stores.batches.move(batch.spec.id, (Status.VALIDATING,), Status.CANCELLING)
    batch = await run(stores, bus, batch)
    assert (batch.status, batch.completed, batch.failed) == (Status.CANCELLED, 0, 0)
    assert await bus.record(request_id(batch.spec.id, 1)) is None


async def test_a_batch_whose_window_ends_reports_every_line(stores: Stores, bus: RedisBus) -> None:
    batch = await run(stores, bus, await stores.create(make_input(*[{"prompt": "x"}] * 5), window_s=0.3))
    assert (batch.status, batch.total, batch.failed) == (Status.EXPIRED, 5, 5)
    errors = await stores.entries(batch.error_file_id)
    assert [entry["error"]["code"] for entry in errors] == ["batch_expired"] * 5
    assert (await bus.depths(["batch"]))["batch"].waiting == 0


@pytest.mark.parametrize(("content", "code"), [(b"", "empty_file"), (b"{}\n" * 4, "too_many_lines")])
async def test_a_file_that_can_not_run_fails_the_batch(
    stores: Stores, bus: RedisBus, content: bytes, code: str
) -> None:
    settings = stores.settings.model_copy(update={"batch_max_lines": 3})
    batch = await run(stores, bus, await stores.create(content), settings=settings)
    assert batch.status is Status.FAILED
    assert batch.fault is not None
    assert batch.fault.code == code


async def test_a_deleted_input_fails_the_batch(stores: Stores, bus: RedisBus) -> None:
    batch = await stores.create(make_input({"prompt": "x"}))
    await stores.files.delete("ada", batch.spec.input_file_id)
    batch = await run(stores, bus, batch)
    assert batch.fault is not None
    assert batch.fault.code == "file_not_found"


async def test_lines_that_fail_in_the_pipeline_go_to_the_error_file(stores: Stores, bus: RedisBus) -> None:
    batch = await stores.create(make_input({"prompt": "x"}))
    running = asyncio.create_task(run(stores, bus, batch))
    async with asyncio.timeout(20):
        while not await bus.end(request_id(batch.spec.id, 1), End(State.FAILED, "worker_died")):
            await asyncio.sleep(0.01)
    batch = await running
    assert (batch.status, batch.failed) == (Status.COMPLETED, 1)
    response = (await stores.entries(batch.error_file_id))[0]["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (503, "worker_died")


async def test_a_line_whose_record_was_swept_is_not_run_again(stores: Stores, bus: RedisBus) -> None:
    batch = await stores.create(make_input({"prompt": "x"}))
    running = asyncio.create_task(run(stores, bus, batch))
    name = request_id(batch.spec.id, 1)
    async with asyncio.timeout(20):
        while not await bus.record(name):
            await asyncio.sleep(0.01)
        ended = bus.end(name, End(State.FAILED, "worker_died"))
        await asyncio.gather(ended, bus.sweep(time.time() + 60))
        await bus.sweep(time.time() + 60)
        batch = await running
    assert batch.failed == 1
    assert await bus.record(name) is None


async def test_two_tasks_never_work_on_one_batch(stores: Stores, bus: RedisBus) -> None:
    batch = await stores.create(make_input({"prompt": "x"}))
    fence = await stores.batches.acquire(batch.spec.id)
    assert not await run_slice(batch.spec.id, make_tools(stores, bus))
    assert fence is not None
    await stores.batches.release(batch.spec.id, fence, clean=True)


async def test_a_batch_that_always_kills_its_task_is_given_up(stores: Stores, bus: RedisBus) -> None:
    batch = await stores.create(make_input({"prompt": "x"}))
    for _ in range(MAX_STARTS):
        fence = await stores.batches.acquire(batch.spec.id)
        assert fence is not None
        await stores.batches.release(batch.spec.id, fence, clean=False)
    batch = await run(stores, bus, batch)
    assert batch.fault is not None
    assert batch.fault.code == "internal_error"
