import time

from common.keys import Keys
from common.offline.batches import BatchStore
from common.offline.store import connect
from common.settings import Settings
from common.tasks.housekeeping import UNCOLLECTED_S, sweep_before_s
from tests.common.offline.test_batches import make_spec


async def test_results_that_an_open_batch_has_not_collected_are_not_swept(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url)
    redis = connect(settings)
    long_ago_s, now_s = time.time() - 7200, time.time()
    batches = BatchStore(redis, Keys(), settings, clock=lambda: long_ago_s)
    assert await sweep_before_s(batches, now_s) == now_s
    await batches.create(make_spec())
    assert await sweep_before_s(batches, now_s) == now_s
    fence = await batches.acquire("batch_1")
    assert await sweep_before_s(batches, now_s) == long_ago_s - UNCOLLECTED_S
    assert fence is not None
    await redis.aclose()
