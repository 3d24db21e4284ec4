"""From an SLO as it was asked for to one in seconds, with the latency model of the engine that would serve it."""

from collections.abc import Iterable, Iterator

from admission.plan import Worker
from common.messages import Request, Stage
from common.slo import Objective


def resolve(request: Request, workers: Iterable[Worker]) -> Objective | None:
    """The request's objective on the fastest engine for it; None for best effort or while no engine is known.

    A slowdown is relative to the zero-load prefill of the same prompt, without queues and hops.
    """
    slo = request.slo
    if slo is None:
        return None
    if slo.ttft_ms is not None:
        ttft_s = slo.ttft_ms / 1e3
    else:
        zero_load_s = min(zero_load_ttfts_s(len(request.prompt), workers), default=None)
        if zero_load_s is None:
            return None
        assert slo.ttft_slowdown is not None
        ttft_s = slo.ttft_slowdown * zero_load_s
    thinking = slo.thinking_tpot_ms if request.thinking_end is not None else None
    return Objective(
        arrival_s=request.arrival_s,
        ttft_s=ttft_s,
        tpot_s=slo.tpot_ms / 1e3,
        thinking_tpot_s=None if thinking is None else thinking / 1e3,
    )


def zero_load_ttfts_s(prompt_tokens: int, workers: Iterable[Worker]) -> Iterator[float]:
    """Prefill time of a prompt on each worker that may prefill, if it is idle, in seconds."""
    for worker in workers:
        if Stage.PREFILL in worker.may:
            yield worker.latency.prefill_seconds(prompt_tokens, worker.max_batch_tokens)
