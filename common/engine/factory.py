"""Which engine the settings ask for."""

from common.engine.interface import Engine
from common.presets import PRESETS
from common.settings import Settings


def make_engine(settings: Settings) -> Engine:
    """An engine that is not started yet; vLLM is imported only if it is asked for.

    A preset is the speed of a simulated engine, and what vLLM's batches are planned with until it is measured.
    """
    preset = PRESETS[settings.preset] if settings.preset else None
    if settings.engine == "simulated":
        from common.engine.simulated import SimulatedEngine

        return SimulatedEngine(settings, preset=preset)
    from common.engine.vllm import VllmEngine

    return VllmEngine(settings, latency=preset.latency) if preset else VllmEngine(settings)
