"""What every engine owes its worker, held against both implementations."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from common.engine.interface import Job, Output
from common.errors import EngineDead, EngineRefused
from common.messages import HandOff, Sampling
from tests.common.engine.support import (
    GREEDY,
    LEASE_S,
    Pool,
    Started,
    collect,
    make_job,
    make_prompt,
    notes_of,
    tokens_of,
    until,
)

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

LONG = replace(GREEDY, max_tokens=1500)


async def running(started: Started, job: Job) -> tuple[AsyncIterator[Output], Output]:
    stream = started.engine.generate(job)
    return stream, await anext(stream)


async def test_a_job_ends_after_max_tokens_with_length(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    outputs = await collect(consumer.engine, make_job())
    assert len(tokens_of(outputs)) == GREEDY.max_tokens
    assert [output.finish for output in outputs if output.finish] == ["length"]
    assert outputs[-1].finish == "length"
    assert notes_of(outputs)["scheduled_s"] > 0


async def test_the_first_output_tells_the_chunks_in_which_the_prompt_was_computed(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    prompt = make_prompt(consumer.facts.max_batch_tokens + 100, seed=4242)
    began_s = time.time()
    outputs = await collect(consumer.engine, make_job(prompt))
    chunks = outputs[0].chunks
    assert len(chunks) > 1
    assert sum(chunk.tokens for chunk in chunks) == chunks[-1].computed == len(prompt)
    assert began_s <= chunks[0].time_s < chunks[-1].time_s <= time.time()
    assert not any(output.chunks for output in outputs[1:])


async def test_an_engine_tells_when_its_iteration_will_end(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    began_s = time.time()
    stream, _ = await running(consumer, make_job())
    assert began_s < consumer.engine.busy_until_s() < time.time() + 5.0
    async for _ in stream:
        pass


async def test_a_stop_token_ends_a_job_with_stop_and_is_its_last_token(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    tokens = tokens_of(await collect(consumer.engine, make_job()))
    stop = tokens[4]
    sampling = replace(GREEDY, stop_token_ids=(stop,))
    outputs = await collect(consumer.engine, make_job(sampling=sampling))
    assert tokens_of(outputs) == tokens[: tokens.index(stop) + 1]
    assert outputs[-1].finish == "stop"


async def test_prefill_only_gives_one_token_and_a_hand_off_of_the_prompts_kv(pool: Pool) -> None:
    producer = await pool.get("producer")
    outputs = await collect(producer.engine, make_job(keep_kv=True))
    hand_off = outputs[-1].hand_off
    assert hand_off is not None
    assert outputs[-1].finish is None
    assert len(tokens_of(outputs)) == 1
    assert hand_off.tokens == 40
    assert hand_off.expires_s > hand_off.produced_s
    await until(lambda: producer.engine.load().free_blocks == producer.facts.total_blocks - 2)
    await producer.engine.release(hand_off)
    await until(producer.free)
    assert time.time() < hand_off.expires_s - 1
    await producer.engine.release(hand_off)


async def test_prefill_that_ends_the_job_finishes_it_and_keeps_nothing(pool: Pool) -> None:
    producer = await pool.get("producer")
    for sampling in (
        replace(GREEDY, max_tokens=1),
        replace(GREEDY, stop_token_ids=tuple(range(producer.facts.vocab_size))),
    ):
        outputs = await collect(producer.engine, make_job(sampling=sampling, keep_kv=True))
        assert outputs[-1].finish == ("length" if sampling.max_tokens == 1 else "stop")
        assert outputs[-1].hand_off is None
    await until(producer.free)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 600])
async def test_prefill_and_decode_by_hand_off_give_the_tokens_of_one_engine(pool: Pool, length: int) -> None:
    producer, consumer = await pool.get("producer"), await pool.get("consumer")
    prompt = make_prompt(length, seed=1000 + length)  # no prefix of another, so that there is KV to pull
    first = await collect(producer.engine, make_job(prompt, keep_kv=True))
    rest = await collect(consumer.engine, make_job(prompt, generated=tokens_of(first), hand_off=first[-1].hand_off))
    assert "recomputed" not in notes_of(rest)
    assert notes_of(rest)["kv_transfer_ms"] > 0
    assert notes_of(rest)["kv_bytes"] > 0
    assert notes_of(rest)["kv_bytes"] % length == 0
    assert tokens_of(first) + tokens_of(rest) == tokens_of(await collect(producer.engine, make_job(prompt)))
    await until(producer.free)
    await until(consumer.free)


async def test_a_job_goes_on_after_the_tokens_that_exist_already(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    tokens = tokens_of(await collect(consumer.engine, make_job()))
    assert tokens_of(await collect(consumer.engine, make_job(generated=tokens[:6]))) == tokens[6:]
    (ended,) = await collect(consumer.engine, make_job(generated=tokens))
    assert (ended.tokens, ended.finish) == ((), "length")


async def test_abort_while_decoding_frees_all_blocks(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    stream, _ = await running(consumer, make_job(sampling=LONG))
    await stream.aclose()  # type: ignore[attr-defined] # every implementation is an async generator
    await until(consumer.free)


async def test_abort_while_waiting_frees_all_blocks_and_leaves_the_others_alone(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    streams = [await running(consumer, make_job(sampling=LONG)) for _ in range(consumer.facts.max_seqs)]
    task = asyncio.create_task(collect(consumer.engine, make_job()))
    await until(lambda: consumer.engine.load().waiting == 1)
    task.cancel()
    await asyncio.wait({task})
    await until(lambda: consumer.engine.load().waiting == 0)
    assert task.cancelled()
    for stream, _ in streams:
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    await until(consumer.free)


async def test_abort_in_the_midst_of_a_prefill_frees_all_blocks(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    task = asyncio.create_task(collect(consumer.engine, make_job(make_prompt(3000, seed=2))))
    await until(lambda: consumer.engine.load().running == 1)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    await until(consumer.free)


async def test_abort_while_awaiting_kv_frees_all_blocks_on_both_sides(pool: Pool) -> None:
    producer, consumer = await pool.get("producer"), await pool.get("consumer")
    prompt = make_prompt(100, seed=3)
    first = await collect(producer.engine, make_job(prompt, keep_kv=True))
    hand_off = first[-1].hand_off
    assert hand_off is not None
    async with pool.stalled_pulls():
        job = make_job(prompt, generated=tokens_of(first), hand_off=hand_off)
        task = asyncio.create_task(collect(consumer.engine, job))
        await until(lambda: not consumer.free())
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
    await producer.engine.release(hand_off)
    await until(producer.free)
    await until(consumer.free)
    assert len(tokens_of(await collect(consumer.engine, make_job()))) == GREEDY.max_tokens


async def test_abort_at_any_moment_of_a_prefill_only_job_leaves_no_kv_behind(pool: Pool) -> None:
    producer = await pool.get("producer")
    taken: list[HandOff] = []

    async def prefill(number: int) -> None:
        async for output in producer.engine.generate(make_job(make_prompt(40 + number, seed=4), keep_kv=True)):
            taken.extend([output.hand_off] if output.hand_off else [])

    tasks = [asyncio.create_task(prefill(number)) for number in range(40)]
    for task in tasks:
        await asyncio.sleep(0.002)  # so that cancels meet every phase
        task.cancel()
    await asyncio.wait(tasks)
    for hand_off in taken:
        await producer.engine.release(hand_off)
    cancelled_s = time.time()
    await until(producer.free)
    assert time.time() < cancelled_s + LEASE_S - 1


async def test_drain_returns_once_the_last_job_has_ended(pool: Pool) -> None:
    consumer = await pool.get("consumer")
    await consumer.engine.drain()
    ended: list[str] = []

    async def run() -> None:
        await collect(consumer.engine, make_job())
        ended.append("job")

    async def drain() -> None:
        await consumer.engine.drain()
        ended.append("drain")

    job = asyncio.create_task(run())
    await until(lambda: consumer.engine.load().running + consumer.engine.load().waiting > 0)
    await asyncio.gather(job, drain())
    assert ended == ["job", "drain"]
    assert consumer.free()


Refused = Callable[[Job], Job]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: replace(job, prompt=()),
        lambda job: replace(job, prompt=(5, 2048)),
        lambda job: replace(job, generated=(2048,)),
        lambda job: replace(job, prompt=make_prompt(4096)),
        lambda job: replace(job, prompt=make_prompt(4090)),
        lambda job: replace(job, sampling=Sampling(max_tokens=0)),
        lambda job: replace(job, sampling=Sampling(max_tokens=5, temperature=-1)),
        lambda job: replace(job, sampling=Sampling(max_tokens=5, top_p=0)),
        lambda job: replace(job, sampling=Sampling(max_tokens=5, min_tokens=6)),
    ],
    ids=[
        "empty",
        "vocabulary",
        "generated",
        "too long",
        "too long with output",
        "max_tokens",
        "temperature",
        "top_p",
        "min",
    ],
)
async def test_bad_input_is_refused_and_the_engine_goes_on(pool: Pool, spoil: Refused) -> None:
    consumer = await pool.get("consumer")
    with pytest.raises(EngineRefused):
        await collect(consumer.engine, spoil(make_job()))
    assert len(tokens_of(await collect(consumer.engine, make_job()))) == GREEDY.max_tokens


async def test_an_engine_that_dies_ends_its_jobs_and_every_verb_with_engine_dead(pool: Pool) -> None:
    doomed = await pool.get("doomed")
    stream, _ = await running(doomed, make_job(sampling=LONG))
    doomed.kill()
    with pytest.raises(EngineDead):
        async for _ in stream:
            pass
    with pytest.raises(EngineDead):
        doomed.engine.load()
    with pytest.raises(EngineDead):
        await collect(doomed.engine, make_job())
    with pytest.raises(EngineDead):
        await doomed.engine.drain()
    await doomed.engine.close()
    pool.forget("doomed")


async def test_close_ends_running_jobs_with_engine_dead(pool: Pool) -> None:
    doomed = await pool.get("doomed")
    stream, _ = await running(doomed, make_job(sampling=LONG))
    await doomed.engine.close()
    with pytest.raises(EngineDead):
        async for _ in stream:
            pass
    pool.forget("doomed")
