"""Which engine the settings ask for."""

from common.engine.interface import Engine
from common.settings import Settings


def make_engine(settings: Settings) -> Engine:
    """An engine that is not started yet; vLLM is imported only if it is asked for."""
    if settings.engine == "simulated":
        from common.engine.simulated import SimulatedEngine

        return SimulatedEngine(settings)
    from common.engine.vllm import VllmEngine

    return VllmEngine(settings)
