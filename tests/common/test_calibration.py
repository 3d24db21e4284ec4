from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from common.calibration import LEAST_SAMPLES, STEP_MESSAGES, load_profile, publish_steps, refit
from common.keys import Keys
from common.latency_fit import median_error
from common.latency_model import Batch
from common.messages import Stage, StepSamples, kind_of
from common.offline.store import Client, connect
from common.settings import Settings
from tests.api.pipeline import worker_state
from tests.common.test_latency_fit import SLOWER, TRUE, make_samples

KEYS, KIND = Keys(), kind_of("test", "unknown")
WORKERS = {"w": replace(worker_state("w", Stage.DECODE), latency=SLOWER), "dead": None}
SAMPLES = make_samples(TRUE, 400)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Client]:
    redis = connect(Settings(redis_url=redis_url))
    yield redis
    await redis.aclose()


async def test_steps_that_workers_measured_become_the_profile_that_all_read(redis: Client) -> None:
    for first in range(0, 400, 100):
        await publish_steps(redis, KEYS, KIND, StepSamples("w", tuple(SAMPLES[first : first + 100])))
    fitted = await refit(redis, KEYS, WORKERS, clock=lambda: 7.0)
    profile = await load_profile(redis, KEYS, KIND)
    assert profile is not None
    assert fitted == {KIND: profile}
    assert (profile.base, profile.samples, profile.fitted_s) == (SLOWER, 400, 7.0)
    assert profile.error == median_error(SAMPLES, profile.latency) < 0.1


async def test_a_refit_starts_from_what_was_measured_at_first_not_from_the_last_fit(redis: Client) -> None:
    await publish_steps(redis, KEYS, KIND, StepSamples("w", tuple(SAMPLES)))
    first = (await refit(redis, KEYS, WORKERS))[KIND]
    adopted = {"w": replace(worker_state("w", Stage.DECODE), latency=first.latency)}
    second = (await refit(redis, KEYS, adopted))[KIND]
    assert (second.base, second.latency) == (SLOWER, first.latency)


async def test_what_runs_the_same_on_different_machines_has_a_profile_for_each(redis: Client) -> None:
    fast = replace(worker_state("fast", Stage.PREFILL), latency=TRUE, machine="H200")
    workers = {**WORKERS, "fast": fast}
    await publish_steps(redis, KEYS, KIND, StepSamples("w", tuple(make_samples(SLOWER, 400))))
    await publish_steps(redis, KEYS, fast.kind, StepSamples("fast", tuple(SAMPLES)))
    fitted = await refit(redis, KEYS, workers)
    assert {kind: profile.base for kind, profile in fitted.items()} == {KIND: SLOWER, fast.kind: TRUE}
    batch = Batch(300, 20, 3000)
    assert fitted[KIND].latency.seconds(batch) > 1.2 * fitted[fast.kind].latency.seconds(batch)


async def test_too_few_steps_and_unreadable_ones_change_nothing(redis: Client) -> None:
    await publish_steps(redis, KEYS, KIND, StepSamples("w", tuple(SAMPLES[: LEAST_SAMPLES - 1])))
    await redis.xadd(KEYS.steps(KIND), {"m": b"garbage"})
    await redis.xadd(KEYS.steps(KIND), {"other": b"x"})
    assert await refit(redis, KEYS, WORKERS) == {}
    assert await load_profile(redis, KEYS, KIND) is None


async def test_the_log_of_steps_is_bounded_and_vanishes_without_workers(redis: Client) -> None:
    for _ in range(STEP_MESSAGES + 300):
        await publish_steps(redis, KEYS, KIND, StepSamples("w", ()))
    assert await redis.xlen(KEYS.steps(KIND)) < STEP_MESSAGES + 200
    assert await redis.ttl(KEYS.steps(KIND)) > 0
