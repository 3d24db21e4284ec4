"""vLLM's CPU worker without a way for one request to kill the engine.

A seeded request whose prompt is computed in chunks makes vLLM 0.32 rewind its generator after each chunk but the
last, which CPU generators can't do: the engine core dies. Here such a generator does not take part in drawing the
token that is thrown away, which has the same effect.
"""

from typing import Any

import numpy as np
import vllm
from vllm.v1.worker.cpu_worker import CPUWorker

from common.errors import EngineError


def check_internals() -> None:
    """Raise EngineError if this vLLM lacks anything that this file relies on."""
    if not hasattr(CPUWorker, "sample_tokens"):
        raise EngineError(f"vLLM {vllm.__version__} is not supported: it lacks CPUWorker.sample_tokens; 0.32 is")


class SeedSafeCpuWorker(CPUWorker):  # type: ignore[misc] # vLLM is not typed for us
    """Sets generators of half-computed prompts aside while tokens are drawn."""

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the tokens of the batch that was just computed."""
        runner = self.model_runner
        batch = runner.input_batch
        unfinished = np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0]
        aside = {int(row): batch.generators.pop(int(row)) for row in unfinished if int(row) in batch.generators}
        try:
            return super().sample_tokens(*args, **kwargs)
        finally:
            batch.generators.update(aside)
