"""What can go wrong between real vLLM engines, each with the right tokens in the end."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from common.codec import Tokens
from common.engine.interface import Job, Output
from common.engine.vllm import VllmEngine
from common.errors import EngineError
from common.messages import Sampling
from tests.common.engine.support import (
    BLOCK,
    GREEDY,
    LEASE_S,
    PROMPT,
    Started,
    VllmPool,
    collect,
    make_job,
    make_prompt,
    make_settings,
    notes_of,
    tokens_of,
    until,
)

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

LENGTHS = (5, 17, 31, 32, 33, 63, 64, 65, 96, 128, 129, 255, 256, 257, 500, 512, 1000, 1024, 1999, 2000)
SEEDED = Sampling(max_tokens=12, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True)
PENALISED = Sampling(max_tokens=12, temperature=0, repetition_penalty=1.3, presence_penalty=0.7, ignore_eos=True)
GREEDY_JOBS = [make_job(make_prompt(length, seed=length)) for length in LENGTHS]
HISTORY_JOBS = [
    make_job(make_prompt(length, seed=7), sampling) for length in (32, 45, 64, 300) for sampling in (SEEDED, PENALISED)
]
Reference = dict[tuple[Tokens, Sampling], Tokens]
FAULT_JOBS = {
    name: make_job(make_prompt(200, seed=number), GREEDY)
    for number, name in enumerate(("late", "other blocks", "hangs", "introduced", "strange", "consumer"), start=70)
}
LONGER_BY = (25, 24 + BLOCK, 70)
LONGER_JOBS = {have: make_job(make_prompt(200, seed=have), replace(GREEDY, max_tokens=74)) for have in LONGER_BY}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def reference(vllm_pool: VllmPool, model: str) -> Reference:
    """What stock vLLM answers: nothing of ours in it, one request at a time, whole prompts (see vllm_cpu_worker)."""
    await vllm_pool.make_room(1)
    return json_tokens(await run_python(STOCK, model, json.dumps([as_dict(job) for job in ALL_JOBS])))


ALL_JOBS = [*GREEDY_JOBS, *HISTORY_JOBS, *FAULT_JOBS.values(), *LONGER_JOBS.values()]
STOCK = """
import json, sys
from common.engine.vllm_config import prepare_environment
if __name__ == "__main__":
    prepare_environment(cpu=True)
    from vllm import LLM, SamplingParams
    llm = LLM(model=sys.argv[1], dtype="float32", enforce_eager=True, skip_tokenizer_init=True, block_size=32,
              max_num_batched_tokens=2048, kv_cache_memory_bytes=1 << 28, enable_prefix_caching=False)
    for job in json.loads(sys.argv[2]):
        params = SamplingParams(detokenize=False, **job["sampling"])
        (output,) = llm.generate([{"prompt_token_ids": job["prompt"]}], params, use_tqdm=False)
        print("tokens", json.dumps(list(output.outputs[0].token_ids)))
"""


def as_dict(job: Job) -> dict[str, object]:
    names = ("max_tokens", "temperature", "top_p", "seed", "presence_penalty", "repetition_penalty", "ignore_eos")
    return {"prompt": job.prompt, "sampling": {name: getattr(job.sampling, name) for name in names}}


def json_tokens(text: str) -> Reference:
    lines = [line.removeprefix("tokens ") for line in text.splitlines() if line.startswith("tokens ")]
    return {(job.prompt, job.sampling): tuple(json.loads(line)) for job, line in zip(ALL_JOBS, lines, strict=True)}


async def run_python(script: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    return output.decode()


async def prefill(producer: Started, job: Job) -> Output:
    return (await collect(producer.engine, replace(job, keep_kv=True)))[-1]


async def decode(consumer: Started, job: Job, first: Output) -> list[Output]:
    return await collect(consumer.engine, replace(job, generated=job.generated + first.tokens, hand_off=first.hand_off))


async def by_hand_off(producer: Started, consumer: Started, job: Job) -> tuple[Tokens, dict[str, float]]:
    first = await prefill(producer, job)
    rest = await decode(consumer, job, first)
    return first.tokens + tokens_of(rest), notes_of(rest)


async def pair(pool: VllmPool) -> tuple[Started, Started]:
    return await pool.get("producer"), await pool.get("consumer")


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
    await until(producer.free)
    await doomed.engine.close()
    vllm_pool.forget("doomed")


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
    assert [sample.tokens for sample in samples] == [256, 256, 188] + [1] * (GREEDY.max_tokens - 1)
    assert [sample.kv_tokens for sample in samples][3:] == list(range(700, 700 + GREEDY.max_tokens - 1))
    assert samples[1].attended == 256 * (256 + 128)
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


async def test_the_engine_core_dies_with_its_worker(vllm_pool: VllmPool, model: str) -> None:
    await vllm_pool.make_room(1)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, model, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    core = 0
    while not core:
        line = await process.stdout.readline()
        assert line
        core = int(line.split()[1]) if line.startswith(b"core ") else 0
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await until(lambda: not Path(f"/proc/{core}").exists())


WORKER = """
import asyncio, multiprocessing, sys
from common.engine.vllm import VllmEngine
from common.settings import Settings

async def main():
    await VllmEngine(Settings(model=sys.argv[1], kv_cache_gib=0.25)).start()
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
