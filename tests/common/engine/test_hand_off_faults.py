"""What can go wrong between real vLLM engines, each with the right tokens in the end."""

import asyncio
import time
from dataclasses import replace

import pytest

from common.errors import EngineError
from tests.common.engine.stock import FAULT_JOBS, LONGER_BY, LONGER_JOBS, Reference, by_hand_off, decode, pair, prefill
from tests.common.engine.support import BLOCK, LEASE_S, VllmPool, collect, notes_of, tokens_of, until

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def test_a_pull_after_the_lease_is_recomputed(vllm_pool: VllmPool, reference: Reference) -> None:
    producer, consumer = await pair(vllm_pool)
    job = FAULT_JOBS["late"]
    first = await prefill(producer, job)
    assert first.hand_off is not None
    expires_s = first.hand_off.expires_s
    await until(lambda: time.time() > expires_s and producer.free(), LEASE_S + 20)
    rest = await decode(consumer, job, first)
    assert first.tokens + tokens_of(rest) == reference[job.prompt, job.sampling]
    assert notes_of(rest)["recomputed"] == 1
    assert notes_of(rest)["lease_expired"] == 1
    assert "kv_transfer_ms" not in notes_of(rest)


async def test_kv_of_another_block_size_is_refused_and_recomputed(vllm_pool: VllmPool, reference: Reference) -> None:
    consumer = await vllm_pool.get("consumer")
    other = await vllm_pool.get("other blocks", block_size=2 * BLOCK)
    job = FAULT_JOBS["other blocks"]
    tokens, notes = await by_hand_off(other, consumer, job)
    assert tokens == reference[job.prompt, job.sampling]
    assert notes["recomputed"] == 1
    assert "kv_transfer_ms" not in notes


@pytest.mark.parametrize("have", LONGER_BY)
async def test_a_prompt_blocks_longer_than_what_was_prefilled_decodes_right(
    vllm_pool: VllmPool, reference: Reference, have: int
) -> None:
    producer, consumer = await pair(vllm_pool)
    job = LONGER_JOBS[have]
    expected = reference[job.prompt, job.sampling]
    first = await prefill(producer, job)
    outputs = await collect(consumer.engine, replace(job, generated=expected[:have], hand_off=first.hand_off))
    assert tokens_of(outputs) == expected[have:]
    assert "kv_transfer_ms" in notes_of(outputs)
    assert "recomputed" not in notes_of(outputs)


@pytest.mark.parametrize("known", ["introduced", "strange"])
async def test_a_producer_dead_before_the_pull_costs_a_recomputation(
    vllm_pool: VllmPool, reference: Reference, known: str
) -> None:
    consumer = await vllm_pool.get("consumer")
    doomed = await vllm_pool.get("doomed")
    if known == "introduced":
        await consumer.engine.introduce(doomed.engine.address())
    job = FAULT_JOBS[known]
    first = await prefill(doomed, job)
    doomed.kill()
    await asyncio.to_thread(doomed.process.join, 20)
    rest = await decode(consumer, job, first)
    assert first.tokens + tokens_of(rest) == reference[job.prompt, job.sampling]
    assert notes_of(rest)["recomputed"] == 1
    await until(consumer.free)
    await doomed.engine.close()
    vllm_pool.forget("doomed")


async def test_a_pull_that_hangs_is_given_up_and_recomputed(vllm_pool: VllmPool, reference: Reference) -> None:
    producer, consumer = await pair(vllm_pool)
    await consumer.engine.introduce(producer.engine.address())
    job = FAULT_JOBS["hangs"]
    first = await prefill(producer, job)
    async with vllm_pool.stalled_pulls():
        rest = await decode(consumer, job, first)
    assert first.tokens + tokens_of(rest) == reference[job.prompt, job.sampling]
    assert notes_of(rest)["recomputed"] == 1
    await until(consumer.free)
    await until(producer.free)


async def test_a_consumer_dead_before_the_pull_leaves_the_producers_blocks_free(vllm_pool: VllmPool) -> None:
    producer = await vllm_pool.get("producer")
    doomed = await vllm_pool.get("doomed")
    await doomed.engine.introduce(producer.engine.address())
    job = FAULT_JOBS["consumer"]
    first = await prefill(producer, job)
    assert not producer.free()
    doomed.kill()
    with pytest.raises(EngineError):
        await decode(doomed, job, first)
    await until(producer.free, LEASE_S + 20)
    await doomed.engine.close()
    vllm_pool.forget("doomed")


async def test_a_first_pull_cancelled_while_its_producer_is_stuck_leaves_no_blocks_behind(vllm_pool: VllmPool) -> None:
    producer = await vllm_pool.get("producer")
    stranger = await vllm_pool.get("stranger")
    job = FAULT_JOBS["stuck"]
    first = await prefill(producer, job)
    assert first.hand_off is not None
    async with vllm_pool.stalled_pulls():
        task = asyncio.create_task(decode(stranger, job, first))
        await until(lambda: not stranger.free())
        task.cancel()
        await asyncio.wait({task})
    await producer.engine.release(first.hand_off)
    await until(producer.free)
    await until(stranger.free)
    await vllm_pool.make_room(1)
