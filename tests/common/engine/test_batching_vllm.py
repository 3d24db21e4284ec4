"""Real vLLM under random batches: whoever is skipped, cut, preempted or drafted for, the tokens are stock vLLM's."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.batching import Former
from common.codec import Tokens
from common.engine.interface import Job
from common.engine.vllm import VllmEngine
from common.errors import EngineError
from common.messages import Sampling
from common.slo import Objective
from tests.common.engine.support import (
    LONGEST,
    Started,
    VllmPool,
    collect,
    make_job,
    make_prompt,
    make_settings,
    tokens_of,
    until,
)

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

GREEDY = Sampling(max_tokens=24, temperature=0, ignore_eos=True)
SEEDED = replace(GREEDY, temperature=0.9, top_p=0.95, seed=11)
PENALISED = replace(GREEDY, repetition_penalty=1.3, presence_penalty=0.7)
LENGTHS = (5, 31, 33, 64, 129, 300, 700)
SHARED = make_prompt(96, seed=3)
PROMPTS = [*(make_prompt(length, seed=length) for length in LENGTHS), *(SHARED + make_prompt(n, n) for n in (1, 40))]
JOBS = [make_job(prompt, sampling) for prompt in PROMPTS for sampling in (GREEDY, SEEDED)]
JOBS += [make_job(PROMPTS[3], PENALISED), make_job(make_prompt(4) * 30, GREEDY)]
RANDOM = "tests.common.engine.random_policy.RandomScheduler"
RANDOM_ASYNC = "tests.common.engine.random_policy.RandomAsyncScheduler"
PLANNED_ASYNC = "common.engine.vllm_batching.PlannedAsyncScheduler"
DRAFT = "bench/tiny_model/draft"


def schedule_ahead(patch: pytest.MonkeyPatch) -> None:
    """As on GPUs; vLLM's CPU platform switches it off, last of all, because a CPU gains nothing from it."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_schedule_ahead(config: Any) -> None:
        check(config)
        config.scheduler_config.async_scheduling = True

    patch.setattr(CpuPlatform, "check_and_update_config", staticmethod(check_and_schedule_ahead))


@asynccontextmanager
async def running(
    model: str, scheduler_cls: str | None = None, asynchronous: bool = False, **changes: object
) -> AsyncIterator[Started]:
    """An engine; an ``asynchronous`` one schedules a step while the one before runs, as vLLM does on GPUs."""
    settings = make_settings(model=model, max_num_seqs=16, **changes)
    engine = VllmEngine(settings, scheduler_cls=scheduler_cls)
    with pytest.MonkeyPatch.context() as patch:
        if asynchronous:
            schedule_ahead(patch)
        facts = await engine.start()
    assert engine._llm.vllm_config.scheduler_config.async_scheduling == asynchronous
    try:
        yield Started(engine, facts)
    finally:
        await engine.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stock(vllm_pool: VllmPool, model: str) -> list[Tokens]:
    await vllm_pool.make_room(0)
    async with running(model, batch_policy="stock") as engine:
        return [tokens_of(await collect(engine.engine, job)) for job in JOBS]


async def answers(engine: Started, jobs: Sequence[Job] = JOBS) -> list[Tokens]:
    return [tokens_of(outputs) for outputs in await asyncio.gather(*(collect(engine.engine, job) for job in jobs))]


async def handed_off(producer: Started, consumer: Started, job: Job) -> Tokens:
    first = (await collect(producer.engine, replace(job, keep_kv=True)))[-1]
    rest = await collect(consumer.engine, replace(job, generated=first.tokens, hand_off=first.hand_off))
    return first.tokens + tokens_of(rest)


async def test_random_batches_give_stock_tokens_with_prefix_caching_and_failures_of_the_policy(
    model: str, stock: list[Tokens]
) -> None:
    async with running(model, RANDOM) as engine:
        for _ in range(3):  # from the second time on prefixes are cached
            assert await answers(engine) == stock
        await until(engine.free)
        assert engine.engine.load().policy_errors > 0


@pytest.mark.parametrize(("scheduler", "speculation"), [(RANDOM_ASYNC, "draft"), (PLANNED_ASYNC, "off")])
async def test_steps_that_are_scheduled_while_others_run_give_stock_tokens_too(
    model: str, stock: list[Tokens], scheduler: str, speculation: str
) -> None:
    async with running(model, scheduler, asynchronous=True, speculation=speculation, draft_model=DRAFT) as engine:
        for _ in range(2):
            assert await answers(engine) == stock
        await until(engine.free)
        assert (engine.engine.load().policy_errors > 0) == (scheduler == RANDOM_ASYNC)
        assert (engine.engine.load().draft_tokens > 1) == (speculation == "draft")


@pytest.mark.parametrize("method", ["ngram", "draft"])
async def test_random_drafts_give_stock_tokens(model: str, stock: list[Tokens], method: str) -> None:
    async with running(model, RANDOM, speculation=method, draft_model=DRAFT) as engine:
        for _ in range(2):
            assert await answers(engine) == stock
        await until(engine.free)


async def test_random_batches_and_drafts_give_stock_tokens_across_a_hand_off_and_leave_time_for_it(
    model: str, stock: list[Tokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"speculation": "draft", "draft_model": DRAFT}
    monkeypatch.setenv(LONGEST, str(tmp_path / "longest"))
    asynchronous = running(model, RANDOM_ASYNC, asynchronous=True, **options)
    async with running(model, RANDOM, **options) as producer, asynchronous as consumer:
        given = await asyncio.gather(*(handed_off(producer, consumer, job) for job in JOBS))
        assert list(given) == stock
        assert longest(tmp_path) == {Former().longest_s}
        promised = replace(JOBS[0], objective=Objective(time.time(), 0.05, 0.04))
        assert await handed_off(producer, consumer, promised) == stock[0]
        assert 0 < min(longest(tmp_path)) < Former().longest_s
        await until(producer.free)
        await until(consumer.free)


def longest(folder: Path) -> set[float]:
    """How long batches could be at most."""
    return {float(line) for line in (folder / "longest").read_text().split()}


async def test_little_kv_preempts_and_leaks_nothing(model: str, stock: list[Tokens]) -> None:
    async with running(model, kv_cache_gib=0.01, max_model_len=1024) as engine:
        assert engine.facts.total_blocks < sum(len(job.prompt) + 24 for job in JOBS) // 32
        assert await answers(engine) == stock
        await until(engine.free)
        assert engine.engine.load().policy_errors == 0


async def test_a_draft_model_must_be_named(model: str) -> None:
    with pytest.raises(EngineError, match="draft_model"):
        await VllmEngine(make_settings(model=model, speculation="draft")).start()


async def test_the_draft_is_where_the_tests_look() -> None:
    assert (Path(DRAFT) / "config.json").exists()
