import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from common.keys import Keys
from common.offline.batch import BatchSpec, Fault, Status
from common.offline.batches import BatchStore, LockLost
from common.offline.store import connect
from common.settings import Settings


@pytest.fixture
async def batches(redis_url: str) -> AsyncIterator[BatchStore]:
    settings = Settings(redis_url=redis_url, batch_lock_s=0.2)
    redis = connect(settings)
    yield BatchStore(redis, Keys(), settings)
    await redis.aclose()


def make_spec(batch_id: str = "batch_1", tenant: str = "ada", **changes: float) -> BatchSpec:
    now_s = changes.get("created_s", time.time())
    return BatchSpec(batch_id, tenant, "file-1", "/v1/completions", "24h", now_s, now_s + 86400, {"k": "v"})


async def acquired(batches: BatchStore, batch_id: str = "batch_1") -> int:
    async with asyncio.timeout(10):
        while (fence := await batches.acquire(batch_id)) is None:
            await asyncio.sleep(0.01)
    return fence


async def test_a_new_batch_is_open_and_is_seen_by_its_tenant_only(batches: BatchStore) -> None:
    batch = await batches.create(make_spec())
    assert (batch.status, batch.total, batch.completed, batch.failed) == (Status.VALIDATING, 0, 0, 0)
    assert await batches.get("ada", "batch_1") == batch
    assert await batches.get("bob", "batch_1") is None
    assert await batches.list("bob", None, 10) == []
    assert await batches.open() == ["batch_1"]


async def test_pages_of_batches_go_from_new_to_old(batches: BatchStore) -> None:
    made = [await batches.create(make_spec(f"batch_{n}", created_s=1e9 + n)) for n in range(4)]
    assert await batches.list("ada", None, 2) == made[:1:-1]
    assert await batches.list("ada", "batch_2", 5) == [made[1], made[0]]
    assert await batches.list("ada", "batch_9", 5) is None


async def test_only_one_run_at_a_time_has_the_lock_and_an_unknown_batch_none(batches: BatchStore) -> None:
    await batches.create(make_spec())
    fence = await acquired(batches)
    assert await batches.acquire("batch_1") is None
    assert await batches.acquire("batch_2") is None
    await batches.release("batch_1", fence, clean=True)
    assert await acquired(batches) > fence


async def test_a_run_whose_lock_went_stale_can_write_nothing_any_more(batches: BatchStore) -> None:
    await batches.create(make_spec())
    old = await acquired(batches)
    new = await acquired(batches)
    with pytest.raises(LockLost):
        await batches.write_line("batch_1", old, 1, b"old", ok=True)
    with pytest.raises(LockLost):
        await batches.renew("batch_1", old)
    with pytest.raises(LockLost):
        await batches.move("batch_1", (Status.VALIDATING,), Status.IN_PROGRESS, old)
    await batches.release("batch_1", old, clean=True)
    assert await batches.locked("batch_1")
    await batches.write_line("batch_1", new, 1, b"new", ok=True)
    assert await batches.results("batch_1", True, [1]) == [b"new"]


async def test_the_first_result_of_a_line_stays(batches: BatchStore) -> None:
    await batches.create(make_spec())
    fence = await acquired(batches)
    await batches.write_line("batch_1", fence, 10, b"first", ok=True)
    await batches.write_line("batch_1", fence, 10, b"second", ok=True)
    await batches.write_line("batch_1", fence, 9, b"bad", ok=False)
    await batches.write_line("batch_1", fence, 2, b"two", ok=True)
    assert await batches.lines("batch_1", True) == [2, 10]
    assert await batches.results("batch_1", True, [2, 10]) == [b"two", b"first"]
    batch = await batches.load("batch_1")
    assert batch is not None
    assert (batch.completed, batch.failed) == (2, 1)


async def test_a_status_changes_only_from_those_expected(batches: BatchStore) -> None:
    await batches.create(make_spec())
    assert not await batches.move("batch_1", (Status.IN_PROGRESS,), Status.FINALIZING)
    assert await batches.move("batch_1", (Status.VALIDATING,), Status.CANCELLING)
    assert not await batches.move("unknown", tuple(Status), Status.CANCELLING)


async def test_an_ended_batch_keeps_its_counts_and_is_open_no_more(batches: BatchStore) -> None:
    await batches.create(make_spec())
    fence = await acquired(batches)
    await batches.write_line("batch_1", fence, 1, b"x", ok=True)
    await batches.move(
        "batch_1", (Status.VALIDATING,), Status.COMPLETED, fence, {"output_file_id": "file-o", "total": 1}
    )
    batch = await batches.load("batch_1")
    assert batch is not None
    assert (batch.status, batch.total, batch.completed, batch.output_file_id) == (Status.COMPLETED, 1, 1, "file-o")
    assert batch.at[Status.COMPLETED] >= batch.at[Status.VALIDATING]
    assert await batches.open() == []
    assert await batches.lines("batch_1", True) == []


async def test_a_failed_batch_says_why(batches: BatchStore) -> None:
    await batches.create(make_spec())
    await batches.fail("batch_1", Fault("empty_file", "no lines", 3), await acquired(batches))
    batch = await batches.load("batch_1")
    assert batch is not None
    assert (batch.status, batch.fault) == (Status.FAILED, Fault("empty_file", "no lines", 3))


async def test_batches_past_their_retention_are_forgotten(batches: BatchStore) -> None:
    await batches.create(make_spec("batch_old", created_s=time.time() - 30 * 86400))
    young = await batches.create(make_spec())
    assert await batches.sweep() == 1
    assert await batches.load("batch_old") is None
    assert await batches.list("ada", None, 10) == [young]
    assert await batches.open() == ["batch_1"]
