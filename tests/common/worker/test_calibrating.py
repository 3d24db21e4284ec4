"""Measured steps are published, and a refitted model replaces the engine's."""

from dataclasses import replace

from common.engine.interface import Job
from common.engine.simulated import SimulatedEngine
from common.latency_model import LatencyModel, Piece
from common.messages import Sampling, StepSamples
from common.worker.calibrating import Calibrator
from tests.pipeline import QUICK, quick_settings


class MemoryProfiles:
    """Steps and a model in memory."""

    def __init__(self) -> None:
        self.published: list[StepSamples] = []
        self.model: LatencyModel | None = None

    async def publish(self, fingerprint: str, steps: StepSamples) -> None:
        assert fingerprint == "f"
        self.published.append(steps)

    async def latest(self, fingerprint: str) -> LatencyModel | None:
        return self.model


async def test_steps_are_published_once() -> None:
    engine, profiles = SimulatedEngine(quick_settings(), latency=QUICK), MemoryProfiles()
    await engine.start()
    calibrator = Calibrator(engine, "w", "f", profiles)
    async for _ in engine.generate(Job("j", tuple(range(20)), Sampling(max_tokens=5))):
        pass
    await calibrator.publish()
    await calibrator.publish()
    (steps,) = profiles.published
    assert steps.worker == "w"
    assert steps.samples[0].tokens == 20
    assert len(steps.samples) == 5
    await engine.close()


async def test_a_refitted_model_is_used_and_none_changes_nothing() -> None:
    engine, profiles = SimulatedEngine(quick_settings(), latency=QUICK), MemoryProfiles()
    calibrator = Calibrator(engine, "w", "f", profiles)
    await calibrator.refresh()
    assert engine.load().latency == QUICK
    profiles.model = replace(QUICK, pieces=(Piece(2e-5, 0.0, 0.002),))
    await calibrator.refresh()
    assert engine.load().latency == profiles.model


async def test_a_model_that_is_known_already_does_not_undo_what_the_engine_learned_since() -> None:
    engine, profiles = SimulatedEngine(quick_settings(), latency=QUICK), MemoryProfiles()
    calibrator = Calibrator(engine, "w", "f", profiles)
    profiles.model = replace(QUICK, pieces=(Piece(2e-5, 0.0, 0.002),))
    await calibrator.refresh()
    engine.latency = learned = replace(QUICK, pieces=(Piece(3e-5, 0.0, 0.002),))
    await calibrator.refresh()
    assert engine.load().latency == learned
