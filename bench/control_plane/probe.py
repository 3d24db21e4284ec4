"""One rate, measured: delays, tokens and CPU time by process; and the search for the highest rate that holds."""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.control_plane.load import Answer

LONGEST_DELAY_MS = 10.0
LEAST_ENDED = 0.995
LATE_MS = 10.0
"""A client that sends later than this (99th percentile) measures itself."""
STEP = 1.5
PRECISION = 1.08
TRIES = 2
LEAST_RATE = 10.0
"""Below this a percentile of delays is that of a handful of requests."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What one rate came to. ``delay_ms_p99_by_replica`` is from sending to decision, ``cpu`` seconds a second.

    ``relay_ms_p99`` is from an engine's first token to the client; ``late_ms_p99`` how late the client was.
    """

    rate: float
    requests_per_s: float
    tokens_per_s: float
    delay_ms_p50: float
    delay_ms_p99: float
    delay_ms_p99_by_replica: tuple[float, ...]
    relay_ms_p99: float
    late_ms_p99: float
    ended: float
    errors: tuple[str, ...]
    cpu: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether every replica's delays are short enough, and all requests were answered as fast as they came."""
        return max(self.delay_ms_p99_by_replica) <= LONGEST_DELAY_MS and self.ended >= LEAST_ENDED and not self.behind

    @property
    def behind(self) -> bool:
        """Whether the client could not send in time."""
        return self.late_ms_p99 > LATE_MS

    def cpu_ms_per_request(self) -> dict[str, float]:
        """CPU time of a request by process."""
        return {name: round(1e3 * used / max(1e-9, self.requests_per_s), 4) for name, used in self.cpu.items()}

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {name: _plain(value) for name, value in asdict(self).items()}
        return found | {"holds": self.holds, "cpu_ms_per_request": self.cpu_ms_per_request()}


def judge(
    answers: Sequence[Answer], rate: float, begin_s: float, end_s: float, cpu: Mapping[str, float], replicas: int
) -> Probe:
    """Figures of what was due between these two times; ``cpu`` was used between them."""
    due = [one for one in answers if begin_s <= one.due_s < end_s]
    ended = [one for one in due if one.ended_s is not None and not one.error]
    delays = [[one.delay_s for one in due if one.replica == replica] for replica in range(replicas)]
    known = [math.inf if one is None else one for of in delays for one in of]
    tokens = sum(one.tokens for one in ended)
    return Probe(
        rate=rate,
        requests_per_s=len(ended) / (end_s - begin_s),
        tokens_per_s=tokens / (end_s - begin_s),
        delay_ms_p50=_ms(known, 0.5),
        delay_ms_p99=_ms(known, 0.99),
        delay_ms_p99_by_replica=tuple(_ms([math.inf if s is None else s for s in of], 0.99) for of in delays),
        relay_ms_p99=_ms([one.relay_s for one in ended if one.relay_s is not None], 0.99),
        late_ms_p99=_ms([one.sent_s - one.due_s for one in due], 0.99),
        ended=len(ended) / len(due) if due else 0.0,
        errors=tuple(sorted({one.error for one in due if one.error})[:3]),
        cpu={name: round(used / (end_s - begin_s), 4) for name, used in cpu.items()},
    )


async def highest(measure: Callable[[float], Awaitable[Probe]], start: float) -> tuple[Probe, list[Probe]]:
    """The probe of the highest rate that held (of the lowest tried if none did), and all probes.

    A rate fails when it has failed twice: other work on the machine may have spoilt one probe.
    """
    probes: list[Probe] = []

    async def holds(rate: float) -> bool:
        for _ in range(TRIES):
            probes.append(await measure(rate))
            if probes[-1].holds:
                return True
        return False

    low, high = 0.0, start
    if await holds(start):
        low = start
        while await holds(low * STEP):
            low *= STEP
        high = low * STEP
    else:
        while low == 0.0 and high > LEAST_RATE:
            if await holds(high / STEP):
                low = high / STEP
            else:
                high /= STEP
    while low and high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if await holds(middle) else (low, middle)
    held = [probe for probe in probes if probe.holds]
    best = max(held, key=lambda probe: probe.rate) if held else min(probes, key=lambda probe: probe.rate)
    return best, probes


def _ms(values_s: Sequence[float], share: float) -> float:
    ordered = sorted(values_s)
    if not ordered:
        return math.inf
    return round(1e3 * ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
