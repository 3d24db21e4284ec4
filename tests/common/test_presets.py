"""Named engines: what a simulated one takes from its preset, and what a vLLM one does."""

import asyncio

import pytest
from pydantic import ValidationError

from common.engine.clock import VirtualClock
from common.engine.factory import make_engine
from common.engine.interface import Job
from common.engine.simulated import SimulatedEngine
from common.engine.vllm import VllmEngine
from common.latency_model import Batch
from common.messages import HandOff, Sampling
from common.presets import PRESETS
from common.settings import Settings

NAME = "opt-13b-tp2-a100"
PRESET = PRESETS[NAME]


def make_settings(engine: str = "simulated", preset: str | None = NAME) -> Settings:
    return Settings(model="none", engine=engine, preset=preset, block_size=16)


async def test_a_simulated_engine_has_the_speed_and_memory_of_its_preset() -> None:
    clock = VirtualClock()
    engine = SimulatedEngine(make_settings(), preset=PRESET, clock=clock)
    facts = await engine.start()
    assert facts.total_blocks == PRESET.kv_tokens // 16
    assert NAME in facts.kind
    assert engine.latency == PRESET.latency
    started_s = clock.now_s()
    [output] = [one async for one in engine.generate(Job("a", (20,) * 500, Sampling(max_tokens=1)))]
    assert output.finish is not None
    assert clock.now_s() - started_s == pytest.approx(PRESET.latency.seconds(Batch(500, 1, 0, 500**2 / 2)))
    await engine.close()


async def test_a_pull_takes_as_long_as_the_preset_s_link() -> None:
    clock = VirtualClock()
    producer, consumer = (SimulatedEngine(make_settings(), preset=PRESET, clock=clock) for _ in range(2))
    for engine in (producer, consumer):
        await engine.start()
    hand_off: HandOff | None = None
    async for output in producer.generate(Job("a", (20,) * 1000, Sampling(max_tokens=2), keep_kv=True)):
        hand_off = output.hand_off
        first = output.tokens
    assert hand_off is not None
    job = Job("a", (20,) * 1000, Sampling(max_tokens=2), generated=first, hand_off=hand_off)
    [notes] = [output.notes async for output in consumer.generate(job)]
    assert notes["kv_transfer_ms"] == pytest.approx(PRESET.transfer_s(1000) * 1e3)
    assert notes["kv_bytes"] == 1000 * PRESET.kv_bytes_per_token
    await asyncio.gather(producer.close(), consumer.close())


def test_the_settings_preset_is_what_the_engine_is_made_with() -> None:
    assert make_engine(make_settings()).latency == PRESET.latency
    assert make_engine(make_settings(preset=None)).latency != PRESET.latency


def test_vllm_is_planned_with_its_preset_until_it_is_measured() -> None:
    engine = make_engine(make_settings("vllm"))
    assert isinstance(engine, VllmEngine)
    assert engine.latency == PRESET.latency


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="unknown preset 'h9000'; known are opt-13b-tp2-a100, "):
        make_settings(preset="h9000")
