"""An outcome in the making."""

from dataclasses import dataclass

from common.messages import Verdict


@dataclass(slots=True)
class Fate:
    """Of one request; ``ended_s`` is None until it has been served or refused."""

    verdict: Verdict = Verdict.ADMITTED
    deferred: bool = False
    promoted: bool = False
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    ended_s: float | None = None
