import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from common.bus.interface import Claim
from common.bus.redis import RedisBus
from common.celery_app import BATCHES
from common.keys import Keys
from common.messages import Work
from common.offline.batch import Status, request_id
from common.offline.endpoint import load_endpoint
from common.offline.run import Tools
from common.offline.runner import run_slice
from common.settings import Settings
from common.tasks.queue import BatchQueue
from tests.common.offline.offline import MODEL, Stores, make_input, open_stores
from tests.common.tasks.celery_process import CeleryProcess, celery, left_in
from tests.pipeline import running_pipeline

LINES = 24
LINE = {"prompt": "x", "max_tokens": 200, "ignore_eos": True}


class CountingBus(RedisBus):
    """Notes what is dispatched."""

    dispatched: list[str]

    async def dispatch(self, claim: Claim, work: Work, token: int) -> bool:
        done = await super().dispatch(claim, work, token)
        if done:
            self.dispatched.append(work.request.id)
        return done


@pytest.fixture
async def stores(redis_url: str) -> AsyncIterator[Stores]:
    stores = open_stores(Settings(redis_url=redis_url, model=str(MODEL), batch_concurrency=2, batch_lock_s=1.0))
    yield stores
    await stores.redis.aclose()


@pytest.fixture
async def bus(stores: Stores) -> AsyncIterator[CountingBus]:
    async with CountingBus.connect(stores.settings) as bus:
        bus.dispatched = []
        yield bus


def worker(stores: Stores, cwd: Path) -> AbstractAsyncContextManager[CeleryProcess]:
    names = ("redis_url", "model", "batch_concurrency", "batch_lock_s")
    settings = {name: getattr(stores.settings, name) for name in names}
    return celery("worker", "-B", "--without-gossip", "--without-mingle", cwd=cwd, celery_concurrency=1, **settings)


async def completed(stores: Stores, batch_id: str, count: int) -> None:
    async with asyncio.timeout(60):
        while (batch := await stores.batches.load(batch_id)) is None or batch.completed < count:
            await asyncio.sleep(0.01)
    assert not batch.status.ended


@pytest.mark.timeout(120)  # two workers import the tokenizer's library, which takes seconds of CPU time each
@pytest.mark.process
async def test_no_line_runs_twice_when_a_worker_is_killed_and_the_next_is_stopped_in_the_middle(
    stores: Stores, bus: CountingBus, tmp_path: Path
) -> None:
    batch = await stores.create(make_input(*[LINE] * LINES))
    batch_id = batch.spec.id
    queue = BatchQueue(stores.settings)
    async with running_pipeline(bus):
        async with worker(stores, tmp_path) as killed:
            assert await queue.start(batch_id)
            await completed(stores, batch_id, 2)
            await killed.end(signal.SIGKILL)
        async with worker(stores, tmp_path) as stopped:
            await completed(stores, batch_id, 8)
            assert await stopped.end() == 0
        assert not await stores.batches.locked(batch_id)
        assert await stores.redis.llen(Keys().celery + BATCHES) >= 1
        tools = Tools(stores.batches, stores.files, bus, load_endpoint(stores.settings), stores.settings)
        assert not await run_slice(batch_id, tools)
    queue.close()
    batch = await stores.load(batch)
    assert (batch.status, batch.completed, batch.failed) == (Status.COMPLETED, LINES, 0)
    output = await stores.entries(batch.output_file_id)
    assert [entry["custom_id"] for entry in output] == [f"line-{n}" for n in range(1, LINES + 1)]
    assert sorted(bus.dispatched) == sorted(request_id(batch_id, n) for n in range(1, LINES + 1))
    assert left_in(tmp_path) == []
