"""What stock vLLM answers, to hold ours against, and the way by hand-off that must give the same."""

import asyncio
import json
import sys
from dataclasses import replace

from common.codec import Tokens
from common.engine.interface import Job, Output
from common.messages import Sampling
from tests.common.engine.support import (
    BLOCK,
    GREEDY,
    Started,
    VllmPool,
    collect,
    make_job,
    make_prompt,
    notes_of,
    tokens_of,
)

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
    for number, name in enumerate(
        ("late", "other blocks", "hangs", "introduced", "strange", "consumer", "stuck"), start=70
    )
}
LONGER_BY = (25, 24 + BLOCK, 70)
LONGER_JOBS = {have: make_job(make_prompt(200, seed=have), replace(GREEDY, max_tokens=74)) for have in LONGER_BY}


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
