"""vLLM's CPU worker, on CPUs of its own and without a way for one request to kill the engine or spoil others' tokens.

A seeded request whose prompt is computed in chunks makes vLLM 0.32 rewind its generator after each chunk but the
last, which CPU generators can't do: the engine core dies. Here such a generator does not take part in drawing the
token that is thrown away, which has the same effect.

While it verifies drafts in a batch with any random sampling, vLLM 0.32's CPU kernel expands temperatures and top-p
into a copy and leaves the result uninitialised, so greedy requests get wrong tokens too; here it is written.
"""

from typing import Any

import numpy as np
import torch
import vllm
from vllm.utils import cpu_triton_utils
from vllm.v1.worker.cpu_worker import CPUWorker

from common.engine.cpus import keep_to
from common.engine.vllm_scheduler import EXTRA
from common.errors import EngineError


def check_internals() -> None:
    """Raise EngineError if this vLLM lacks anything that this file relies on."""
    for owner, name in ((CPUWorker, "sample_tokens"), (cpu_triton_utils, "_expand_kernel_impl")):
        if not hasattr(owner, name):
            text = f"vLLM {vllm.__version__} is not supported: it lacks {owner.__name__}.{name}; 0.32 is"
            raise EngineError(text)


def expand(
    output: torch.Tensor,
    values: torch.Tensor,
    ends: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # noqa: ARG001 - vLLM's call
) -> None:
    """Write each request's value once for each of its tokens; ``ends`` are the sums of their numbers."""
    counts = torch.diff(ends.long(), prepend=ends.new_zeros(1, dtype=torch.long))
    replaced = torch.where(values == replace_from, torch.as_tensor(replace_to, dtype=values.dtype), values)
    output.copy_(replaced.repeat_interleave(counts))


cpu_triton_utils._expand_kernel_impl = expand


class SeedSafeCpuWorker(CPUWorker):  # type: ignore[misc] # vLLM is not typed for us
    """Sets generators of half-computed prompts aside while tokens are drawn."""

    def init_device(self) -> None:
        """Choose CPUs before any thread that computes is started; vLLM does only where it starts a process a rank."""
        keep_to(self.vllm_config.additional_config.get(EXTRA, {}).get("cpus", ()))
        super().init_device()

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
