"""Whether an SLO is possible at all: no waiting helps where even an idle engine would be late."""

from collections.abc import Iterable

from admission.objectives import zero_load_ttft_s
from admission.plan import Held, Worker

UNATTAINABLE = "slo_unattainable: "
"""How the reason of such a refusal begins; what is possible follows."""


def unattainable(held: Held, workers: Iterable[Worker]) -> str | None:
    """Why the TTFT that was asked for is below the prompt's zero-load time on the fastest engine; None if it is not.

    Queues and hops are left out: they change, and what can't be promised because of them is a matter of load.
    """
    if held.objective is None or held.generated_tokens:
        return None
    least_s = zero_load_ttft_s(held.need_tokens, workers)
    if least_s is None or held.objective.ttft_s >= least_s:
        return None
    return f"{UNATTAINABLE}TTFT is at least {least_s * 1e3:.1f} ms for this prompt"
