"""Real vLLM engines: stock vLLM's tokens, in every way of sampling, and a clean life and death."""

import asyncio
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.engine.interface import Job
from common.engine.vllm import VllmEngine
from common.errors import EngineError
from tests.common.engine.stock import GREEDY_JOBS, HISTORY_JOBS, SEEDED, Reference, by_hand_off, pair
from tests.common.engine.support import (
    GREEDY,
    PROMPT,
    VllmPool,
    collect,
    make_job,
    make_prompt,
    make_settings,
    tokens_of,
    until,
)

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def test_twenty_prompts_at_once_give_stock_vllms_tokens(vllm_pool: VllmPool, reference: Reference) -> None:
    producer, consumer = await pair(vllm_pool)
    answers = await asyncio.gather(*(by_hand_off(producer, consumer, job) for job in GREEDY_JOBS))
    assert [tokens for tokens, _ in answers] == [reference[job.prompt, job.sampling] for job in GREEDY_JOBS]
    assert [notes for _, notes in answers if "recomputed" in notes] == []
    await until(producer.free)
    await until(consumer.free)


@pytest.mark.parametrize("job", HISTORY_JOBS, ids=lambda job: f"{len(job.prompt)}-{job.sampling.seed or 'penalised'}")
async def test_sampling_with_a_history_gives_stock_vllms_tokens(
    vllm_pool: VllmPool, reference: Reference, job: Job
) -> None:
    producer, consumer = await pair(vllm_pool)
    expected = reference[job.prompt, job.sampling]
    tokens, notes = await by_hand_off(producer, consumer, job)
    assert tokens == expected
    assert "kv_transfer_ms" in notes
    again, _ = await by_hand_off(producer, consumer, replace(job, generated=expected[:5]))
    assert again == expected[5:]


async def test_tokens_that_sampling_does_not_repeat_are_kept_and_continued(vllm_pool: VllmPool) -> None:
    _, consumer = await pair(vllm_pool)
    foreign = (100, 200, 300)
    outputs = await collect(consumer.engine, make_job(sampling=SEEDED, generated=foreign))
    assert len(tokens_of(outputs)) == SEEDED.max_tokens - len(foreign)
    assert outputs[-1].finish == "length"


async def test_introduction_shakes_hands_ahead_of_the_first_pull(vllm_pool: VllmPool) -> None:
    producer = await vllm_pool.get("producer")
    fresh = await vllm_pool.get("fresh")
    assert isinstance(fresh.engine, VllmEngine)
    assert await fresh.engine.peers() == frozenset()
    await fresh.engine.introduce(producer.engine.address())
    assert await fresh.engine.peers() == {producer.engine.address()["engine"]}
    await fresh.engine.introduce({**producer.engine.address(), "fingerprint": "foreign", "engine": "x"})


async def test_samples_hold_every_batch_that_was_run(vllm_pool: VllmPool) -> None:
    _, consumer = await pair(vllm_pool)
    assert isinstance(consumer.engine, VllmEngine)
    consumer.engine.take_samples()
    await collect(consumer.engine, make_job(make_prompt(700, seed=60)))
    samples = consumer.engine.take_samples()
    decodes = GREEDY.max_tokens - 1
    chunks = [sample.tokens for sample in samples][:-decodes]
    assert sum(chunks) == 700
    assert max(chunks) <= 256
    assert [sample.tokens for sample in samples][-decodes:] == [1] * decodes
    assert [sample.kv_tokens for sample in samples][-decodes:] == list(range(700, 700 + decodes))
    assert samples[1].attended == chunks[1] * (chunks[0] + chunks[1] / 2)
    assert all(sample.seconds > 0 for sample in samples)
    assert consumer.engine.load().step_ms == pytest.approx(samples[-1].seconds * 1e3)


async def test_every_eos_token_of_the_model_stops_without_a_tokenizer(
    vllm_pool: VllmPool, model: str, tmp_path: Path
) -> None:
    _, consumer = await pair(vllm_pool)
    tokens = tokens_of(await collect(consumer.engine, make_job()))
    ends = sorted({tokens[0], tokens[3]})
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    await vllm_pool.make_room(1)
    engine = VllmEngine(make_settings(model=str(folder)))
    await engine.start()
    try:
        minimum = tokens.index(tokens[3])
        patient = replace(GREEDY, ignore_eos=False)
        (first,) = await collect(engine, make_job(sampling=patient, keep_kv=True))
        assert (first.tokens, first.finish, first.hand_off) == (tokens[:1], "stop", None)
        rest = await collect(engine, make_job(sampling=patient, generated=(tokens[0] + 1, *tokens[1:minimum])))
        assert rest[-1].finish in ("stop", "length")
        assert tokens_of(await collect(engine, make_job())) == tokens
    finally:
        await engine.close()


async def test_the_engine_core_keeps_to_its_cpus_and_dies_with_its_worker(vllm_pool: VllmPool, model: str) -> None:
    await vllm_pool.make_room(1)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, model, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    core = 0
    while not core:
        line = await process.stdout.readline()
        assert line
        core = int(line.split()[1]) if line.startswith(b"core ") else 0
    first = min(os.sched_getaffinity(0))
    assert os.sched_getaffinity(core) == {first}
    assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await until(lambda: not Path(f"/proc/{core}").exists())


WORKER = """
import asyncio, multiprocessing, os, sys
from common.engine.vllm import VllmEngine
from common.settings import Settings

async def main():
    first = str(min(os.sched_getaffinity(0)))
    await VllmEngine(Settings(model=sys.argv[1], kv_cache_gib=0.25, engine_cpus=first)).start()
    (core,) = multiprocessing.active_children()
    print("core", core.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_model_that_does_not_exist_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        await VllmEngine(make_settings(model=str(tmp_path / "nothing"))).start()


async def test_a_block_size_that_a_cpu_can_not_have_is_an_engine_error(model: str) -> None:
    with pytest.raises(EngineError, match="multiple of 32"):
        await VllmEngine(make_settings(model=model, block_size=16)).start()


async def test_a_consumer_that_has_the_prompt_already_still_frees_the_producers_blocks(vllm_pool: VllmPool) -> None:
    producer, consumer = await pair(vllm_pool)
    for _ in range(2):  # the second time the consumer has every block itself and only tells the producer
        tokens, _ = await by_hand_off(producer, consumer, make_job(PROMPT * 4))
        assert len(tokens) == GREEDY.max_tokens
        await until(producer.free)
