import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.batching import Former
from common.engine.clock import VirtualClock
from common.engine.interface import Engine, Job, Output
from common.engine.promises import Promise
from common.engine.simulated import DEFAULT_LATENCY, KvRegistry, SimulatedEngine
from common.engine.simulated_batching import SlackBatches
from common.engine.simulated_core import Core, Phase, Sequence
from common.errors import EngineDead
from common.messages import Sampling
from common.settings import Settings
from common.slo import Objective, attained

NOW_S = 1_000_000.0


def make_settings(**changes: Any) -> Settings:
    return Settings(model="none", engine="simulated", **{"max_num_batched_tokens": 256, "block_size": 16, **changes})


def make_job(id: str = "a", prompt: int = 32, max_tokens: int = 8, **changes: Any) -> Job:
    return Job(id, tuple(range(20, 20 + prompt)), Sampling(max_tokens=max_tokens), **changes)


async def collect(engine: Engine, job: Job) -> list[Output]:
    return [output async for output in engine.generate(job)]


def tokens_of(outputs: list[Output]) -> tuple[int, ...]:
    return tuple(token for output in outputs for token in output.tokens)


@pytest.mark.parametrize("policy", ["slo", "stock"])
async def test_batches_keep_a_tight_decode_in_time_beside_long_prompts_unless_they_are_stock(policy: str) -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(make_settings(batch_policy=policy, max_num_batched_tokens=2048), clock=clock)
    await engine.start()
    tight, loose = (Objective(clock.now_s(), ttft_s, tpot_s) for ttft_s, tpot_s in ((0.1, 0.03), (60.0, 2.0)))
    times_s: list[float] = []

    async def decode() -> None:
        async for _ in engine.generate(make_job(prompt=32, max_tokens=40, objective=tight)):
            times_s.append(clock.now_s())

    jobs = [make_job(str(i), prompt=2000, max_tokens=2, objective=loose) for i in range(6)]
    await asyncio.gather(decode(), *(collect(engine, job) for job in jobs))
    assert attained(tight, times_s, tolerance=0.0) == (policy == "slo")
    await engine.close()


@pytest.mark.parametrize("policy", ["slo", "stock"])
async def test_what_is_pulled_into_a_busy_engine_is_in_time_unless_its_batches_are_stock(policy: str) -> None:
    clock, registry = VirtualClock(), KvRegistry()
    settings = make_settings(batch_policy=policy, max_num_batched_tokens=2048)
    producer, consumer = (SimulatedEngine(settings, clock=clock, registry=registry) for _ in range(2))
    await producer.start()
    await consumer.start()
    first = (await collect(producer, make_job(keep_kv=True)))[-1]
    loose = Objective(clock.now_s(), 60.0, 2.0)
    busy = [asyncio.create_task(collect(consumer, make_job(str(i), 2000, 2, objective=loose))) for i in range(4)]
    await clock.sleep(0.01)
    times_s = [clock.now_s()]
    tight = Objective(times_s[0] - 0.1, 0.1, 0.04)
    job = make_job(
        max_tokens=12, generated=first.tokens, first_token_s=times_s[0], hand_off=first.hand_off, objective=tight
    )
    async for _ in consumer.generate(job):
        times_s.append(clock.now_s())
    assert attained(tight, times_s, tolerance=0.0) == (policy == "slo")
    await asyncio.gather(*busy)
    await producer.close()
    await consumer.close()


async def test_an_iteration_takes_the_latency_models_time() -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(make_settings(), clock=clock)
    await engine.start()
    start_s = clock.now_s()
    await collect(engine, make_job(prompt=600, max_tokens=2))
    expected_s = DEFAULT_LATENCY.prefill_seconds(600, 256) + DEFAULT_LATENCY.decode_seconds(1, 600)
    assert clock.now_s() - start_s == pytest.approx(expected_s)
    await engine.close()


async def test_a_hand_off_that_nobody_pulls_is_freed_when_its_lease_ends() -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(make_settings(kv_lease_s=5), clock=clock, registry=KvRegistry())
    facts = await engine.start()
    hand_off = (await collect(engine, make_job(keep_kv=True)))[-1].hand_off
    assert hand_off is not None
    assert engine.load().free_blocks == facts.total_blocks - 2
    await engine.drain()
    assert clock.now_s() == pytest.approx(hand_off.expires_s)
    assert engine.load().free_blocks == facts.total_blocks
    await engine.close()


async def test_a_pull_frees_the_producers_blocks_and_takes_the_transfer_time() -> None:
    clock, registry = VirtualClock(), KvRegistry()
    producer, consumer = (SimulatedEngine(make_settings(), clock=clock, registry=registry) for _ in range(2))
    facts = await producer.start()
    await consumer.start()
    first = (await collect(producer, make_job(keep_kv=True)))[-1]
    start_s = clock.now_s()
    job = make_job(generated=first.tokens, hand_off=first.hand_off, max_tokens=2)
    outputs = await collect(consumer, job)
    assert outputs[0].notes["kv_transfer_ms"] == pytest.approx(15)
    assert clock.now_s() - start_s == pytest.approx(0.015 + DEFAULT_LATENCY.decode_seconds(1, 32))
    assert producer.load().free_blocks == facts.total_blocks
    await producer.close()
    await consumer.close()


@pytest.mark.parametrize("loss", ["expired", "killed", "released", "foreign"])
async def test_a_hand_off_that_is_lost_is_recomputed_to_the_same_tokens(loss: str) -> None:
    clock, registry = VirtualClock(), KvRegistry()
    producer = SimulatedEngine(make_settings(kv_lease_s=2), clock=clock, registry=registry)
    block_size = 32 if loss == "foreign" else 16
    consumer = SimulatedEngine(make_settings(block_size=block_size), clock=clock, registry=registry)
    await producer.start()
    await consumer.start()
    expected = tokens_of(await collect(consumer, make_job()))
    first = (await collect(producer, make_job(keep_kv=True)))[-1]
    assert first.hand_off is not None
    if loss == "expired":
        await clock.sleep(3)
    elif loss == "killed":
        producer.kill()
    elif loss == "released":
        await producer.release(first.hand_off)
    outputs = await collect(consumer, make_job(generated=first.tokens, hand_off=first.hand_off))
    assert outputs[0].notes["recomputed"] == 1
    assert first.tokens + tokens_of(outputs) == expected
    await producer.close()
    await consumer.close()


async def test_without_a_registry_a_hand_off_is_trusted_and_its_producer_frees_by_itself() -> None:
    clock = VirtualClock()
    producer, consumer = (SimulatedEngine(make_settings(), clock=clock) for _ in range(2))
    facts = await producer.start()
    await consumer.start()
    first = (await collect(producer, make_job(keep_kv=True)))[-1]
    outputs = await collect(consumer, make_job(generated=first.tokens, hand_off=first.hand_off))
    assert "recomputed" not in outputs[0].notes
    await producer.drain()
    assert producer.load().free_blocks == facts.total_blocks
    await producer.close()
    await consumer.close()


async def test_jobs_wait_while_blocks_are_short_and_all_finish_with_their_own_text() -> None:
    clock = VirtualClock()
    alone = SimulatedEngine(make_settings(), clock=clock)
    crowded = SimulatedEngine(make_settings(), clock=clock, total_blocks=8)
    await alone.start()
    await crowded.start()
    jobs = [make_job(f"{n}", prompt=20 + n, max_tokens=40) for n in range(12)]
    outputs = await asyncio.gather(*(collect(crowded, job) for job in jobs))
    expected = [tokens_of(await collect(alone, job)) for job in jobs]
    assert [tokens_of(one) for one in outputs] == expected
    assert crowded.load().free_blocks == 8
    await alone.close()
    await crowded.close()


async def test_a_killed_engine_ends_running_jobs_and_every_verb_with_engine_dead() -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(make_settings(), clock=clock)
    await engine.start()
    stream = engine.generate(make_job(max_tokens=500))
    await anext(stream)
    engine.kill()
    with pytest.raises(EngineDead):
        async for _ in stream:
            pass
    with pytest.raises(EngineDead):
        engine.load()
    with pytest.raises(EngineDead):
        await anext(engine.generate(make_job()))
    await engine.close()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 70), st.integers(1, 30)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("keep"), st.integers(0, 30), st.just(0)),
    ),
    max_size=80,
)


@pytest.mark.parametrize("policy", ["slo", "stock"])
@settings(max_examples=150)
@given(script=steps)
def test_blocks_are_never_over_the_limit_and_every_job_left_alone_finishes(
    policy: str, script: list[tuple[str, int, int]]
) -> None:
    batches = SlackBatches(Former())
    core = Core(total_blocks=7, block_size=16, max_seqs=4, max_batch_tokens=24)
    goals: dict[int, int] = {}
    kept: list[int] = []
    alive: list[Sequence] = []

    def check() -> None:
        assert core.free_blocks >= 0
        assert core.free_blocks + sum(s.blocks for s in alive) + sum(kept) == core.total_blocks
        assert all(s.computed <= s.blocks * core.block_size for s in alive)
        assert len(core.running) <= core.max_seqs

    def step() -> bool:
        grants = core.plan() if policy == "stock" else core.carry_out(*batches.form(core, DEFAULT_LATENCY, NOW_S))[0]
        assert sum(grant.tokens for grant in grants) <= core.max_batch_tokens
        check()
        for sequence in core.apply(grants):
            sequence.tokens.append(1)
            if len(sequence.tokens) >= goals[id(sequence)]:
                core.remove(sequence)
                alive.remove(sequence)
        return bool(grants)

    for kind, number, more in script:
        if kind == "add":
            promised = Objective(NOW_S - 1, 1.0 + number, 0.05) if number % 3 else None
            sequence = Sequence(make_job(), [1] * number, promise=Promise("", NOW_S + len(goals), promised))
            goals[id(sequence)] = number + more
            alive.append(sequence)
            core.add(sequence)
        elif kind == "step":
            step()
        elif kind == "abort" and alive:
            core.remove(alive.pop(number % len(alive)))
        elif kind == "keep" and any(s.phase is Phase.RUNNING for s in alive):
            sequence = next(s for s in alive if s.phase is Phase.RUNNING)
            alive.remove(sequence)
            kept.append(core.keep(sequence))
        check()
    while kept:
        core.give_back(kept.pop())
    for _ in range(10_000):
        if not alive:
            break
        assert step()
    assert not alive
    assert core.free_blocks == core.total_blocks
