"""What engines can do at all: whether an SLO is possible, and how long what waits will take."""

import math
from collections.abc import Iterable

from admission.objectives import zero_load_ttfts_s
from admission.plan import Held, Worker
from common.latency_model import Batch
from common.messages import Stage

UNATTAINABLE = "slo_unattainable: "
"""How the reason of a refusal begins where even an idle engine would be late; what is possible follows."""

LONGEST_DRAIN_S = 60.0
"""Nobody can say more than a minute ahead."""


def unattainable(held: Held, workers: Iterable[Worker]) -> str | None:
    """Why the TTFT that was asked for is below the prompt's zero-load time on the fastest engine; None if it is not.

    Queues and hops are left out: they change, and what can't be promised because of them is a matter of load.
    """
    if held.objective is None or held.generated_tokens:
        return None
    least_s = math.inf
    for time_s in zero_load_ttfts_s(held.need_tokens, workers):
        if time_s <= held.objective.ttft_s:
            return None
        least_s = min(least_s, time_s)
    if math.isinf(least_s):
        return None
    return f"{UNATTAINABLE}TTFT is at least {least_s * 1e3:.1f} ms for this prompt"


def drain_s(prompt_tokens: int, workers: Iterable[Worker]) -> float:
    """How long all workers take for so many prompt tokens if they compute nothing else, 1 to 60 s; 60 without any."""
    rate = sum(
        worker.max_batch_tokens / (worker.slowdown * worker.latency.seconds(Batch(worker.max_batch_tokens, seqs=1)))
        for worker in workers
        if Stage.PREFILL in worker.may
    )
    return min(LONGEST_DRAIN_S, max(1.0, prompt_tokens / rate)) if rate > 0 else LONGEST_DRAIN_S
