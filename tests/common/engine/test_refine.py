import asyncio
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from common.engine.exports import Reader, Writer
from common.engine.refine import LEAST, LEAST_REST, PERIOD_S, REFIT_STEPS, RING, Refiner
from common.latency_model import Batch, LatencyModel, Piece
from common.messages import StepSample

TRUE = LatencyModel((Piece(4e-5, 0.0, 5e-3),), k_seq=1e-4)
WRONG = LatencyModel((Piece(8e-5, 0.0, 1e-2),), k_seq=2e-4)


def make_samples(count: int, prefill: float = 0.3) -> list[StepSample]:
    rng = random.Random(1)
    samples = []
    for _ in range(count):
        seqs = rng.randint(1, 32)
        tokens = seqs + (rng.randint(1, 500) if rng.random() < prefill else 0)
        batch = Batch(tokens, seqs, attended=float(tokens - seqs) * 100)
        samples.append(StepSample(tokens, seqs, 0, batch.attended, 0, TRUE.seconds(batch) * rng.uniform(0.95, 1.05)))
    return samples


async def test_the_model_follows_the_steps_and_the_core_is_told() -> None:
    told: list[LatencyModel] = []
    refiner = Refiner(WRONG, told.append)
    for sample in make_samples(200):
        refiner.add(sample)
    await refiner.refine()
    batch = Batch(200, 10)
    assert refiner.latency.seconds(batch) == pytest.approx(TRUE.seconds(batch), rel=0.08)
    assert told == [WRONG, refiner.latency]


WARM = """
import asyncio, sys
from common.engine.refine import Refiner
from tests.common.engine.test_refine import WRONG, make_samples
refiner = Refiner(WRONG, lambda model: None)
asyncio.run(refiner.warm_up())
assert refiner.latency == WRONG
before = set(sys.modules)
for sample in make_samples(200):
    refiner.add(sample)
asyncio.run(refiner.refine())
assert refiner.latency != WRONG
print(sorted(set(sys.modules) - before))
"""


def test_after_a_warm_up_a_fit_loads_nothing_more() -> None:
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


async def test_a_machine_that_slows_down_is_known_before_the_next_refit() -> None:
    told: list[LatencyModel] = []
    refiner = Refiner(TRUE, told.append)
    for sample in make_samples(30):
        refiner.add(replace(sample, seconds=3 * sample.seconds))
    assert refiner.slowdown == pytest.approx(3.0, rel=0.1)
    assert refiner.latency == TRUE
    await refiner.refine()
    batch = Batch(200, 10)
    assert refiner.slowdown * refiner.latency.seconds(batch) == pytest.approx(3 * TRUE.seconds(batch), rel=0.1)
    assert told == [TRUE, refiner.latency]  # the core follows its steps by itself


async def test_an_idle_engine_s_slow_moment_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    slept_s: list[float] = []

    async def sleep(seconds: float) -> None:
        slept_s.append(seconds)
        if sum(slept_s) > 60:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    refiner = Refiner(TRUE, lambda _: None)
    slow = [replace(sample, seconds=3 * sample.seconds) for sample in make_samples(LEAST - 1)]  # too few for a refit
    with pytest.raises(asyncio.CancelledError):
        await refiner.run(lambda: refiner.add(slow.pop()) if slow else None)
    assert refiner.slowdown == 1.0


async def test_few_new_steps_cost_nothing() -> None:
    refiner = Refiner(WRONG, lambda _: None)
    for sample in make_samples(200):
        refiner.add(sample)
    await refiner.refine()
    known = refiner.latency
    for sample in make_samples(REFIT_STEPS - 1):
        refiner.add(sample)
    await refiner.refine()
    assert refiner.latency is known


async def test_refits_take_a_bounded_share_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    refiner = Refiner(WRONG, lambda _: None)
    for sample in make_samples(2 * RING):
        refiner.add(sample)
    with pytest.raises(asyncio.CancelledError):
        await refiner.run(lambda: None)
    assert slept == [PERIOD_S, max(PERIOD_S, LEAST_REST * refiner._took_s)]
    assert refiner._took_s > 0


async def test_hours_of_decode_do_not_drive_out_steps_with_prefill() -> None:
    refiner = Refiner(WRONG, lambda _: None)
    for sample in make_samples(100, prefill=1.0) + make_samples(10 * RING, prefill=0.0):
        refiner.add(sample)
    await refiner.refine()
    batch = Batch(400, 10, attended=39_000.0)
    assert refiner.latency.seconds(batch) == pytest.approx(TRUE.seconds(batch), rel=0.15)


async def test_a_new_profile_begins_anew() -> None:
    refiner = Refiner(WRONG, lambda _: None)
    for sample in make_samples(200):
        refiner.add(sample)
    refiner.restart(TRUE)
    await refiner.refine()
    assert refiner.latency == TRUE


async def test_a_refitted_profile_from_outside_does_not_hide_that_the_machine_is_slow_now() -> None:
    refiner, batch = Refiner(TRUE, lambda _: None), Batch(200, 10)
    for sample in make_samples(60):
        refiner.add(replace(sample, seconds=3 * sample.seconds))
    for known in (TRUE.scaled(1.2), TRUE.scaled(3)):
        refiner.restart(known)
        assert refiner.slowdown * refiner.latency.seconds(batch) == pytest.approx(3 * TRUE.seconds(batch), rel=0.1)
    refiner.forget()
    assert refiner.slowdown == 1.0


def test_the_core_reads_each_model_once() -> None:
    reader = Reader()
    writer = Writer(reader.path)
    reader.unlink()
    assert writer.model() is None
    for model in (WRONG, LatencyModel((Piece(1e-4, 2e-4, 3e-3), Piece(1e-5, 0.0, 9e-3)), 1e-5, 2e-8, 3e-9)):
        reader.tell(model)
        assert writer.model() == model
        assert writer.model() is None
