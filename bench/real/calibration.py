"""What one stock engine of this machine does when it is idle or evenly loaded, and the SLOs that follow from it.

Every system of a comparison is held to the same SLOs: a time to first token relative to the zero-load time of the same
prompt on a stock server, and a time per token relative to that server's step at 16 decoding sequences.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.simulator.objectives import slos
from bench.workloads.item import Item
from common.messages import Slo
from common.slo import Objective
from common.tiers import Tiers, load_tiers

TIGHT_STEPS = 2.0
"""A tight TPOT in steps of 16 sequences; a loose one is twice that, as in the tiers file."""
TIGHT_MS = 50.0
"""What the tiers file calls tight."""
SEQUENCES = 16


@dataclass(frozen=True, slots=True)
class Calibration:
    """Pairs of a prompt's tokens and its zero-load TTFT, and of a context and the step at 16 sequences, seconds."""

    zero_load: tuple[tuple[int, float], ...]
    step: tuple[tuple[int, float], ...]

    def zero_load_s(self, prompt_tokens: int) -> float:
        """Time to first token of a prompt that has an engine for itself."""
        return _at(self.zero_load, prompt_tokens)

    def step_s(self, context: float) -> float:
        """Time between tokens of 16 sequences of this context."""
        return _at(self.step, context)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)) + "\n")


def load(path: Path) -> Calibration:
    """Read what :meth:`Calibration.save` wrote; raises OSError, ValueError or KeyError."""
    raw = json.loads(path.read_text())
    zero_load, step = (tuple((int(x), float(y)) for x, y in raw[name]) for name in ("zero_load", "step"))
    return Calibration(zero_load, step)


def _at(points: Sequence[tuple[int, float]], x: float) -> float:
    """Linear between the points, and on from the last two."""
    xs, ys = np.array([point[0] for point in points], float), np.array([point[1] for point in points])
    if x > xs[-1]:
        return float(ys[-1] + (x - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))
    return float(np.interp(x, xs, ys))


def mean_context(items: Sequence[Item]) -> float:
    """Tokens that a decoding sequence reads: its prompt and half of its output, on average."""
    return float(np.mean([item.prompt_tokens + item.output_tokens / 2 for item in items]))


@dataclass(frozen=True, slots=True)
class Objectives:
    """SLOs of a workload's requests; ``tiers`` have TPOTs of this machine."""

    calibration: Calibration
    tiers: Tiers
    step_s: float

    def slos(self, items: Sequence[Item]) -> list[Slo | None]:
        """Absolute SLO of each request, None for best effort; raises KeyError for an unknown tier."""
        return [
            None if slo is None else self._absolute(slo, item)
            for item, (_, slo) in zip(items, slos(items, self.tiers), strict=True)
        ]

    def _absolute(self, slo: Slo, item: Item) -> Slo:
        ttft_ms = slo.ttft_ms
        if ttft_ms is None:
            assert slo.ttft_slowdown is not None
            ttft_ms = slo.ttft_slowdown * self.calibration.zero_load_s(item.prompt_tokens) * 1e3
        thinking_ms = slo.thinking_tpot_ms if item.thinking_tokens else None
        return Slo(ttft_ms, None, slo.tpot_ms, thinking_ms)


def objectives_for(calibration: Calibration, items: Sequence[Item], tpot_scale: float = 1.0) -> Objectives:
    """SLOs scaled to this machine and to the mean context of the workload; ``tpot_scale`` stretches all TPOTs."""
    step_s = calibration.step_s(mean_context(items))
    tiers = load_tiers(tpot_scale=TIGHT_STEPS * step_s * 1e3 / TIGHT_MS * tpot_scale)
    return Objectives(calibration, tiers, step_s)


def objective_of(slo: Slo | None, arrival_s: float) -> Objective | None:
    """The same in seconds, from an arrival on."""
    if slo is None:
        return None
    assert slo.ttft_ms is not None
    thinking_s = None if slo.thinking_tpot_ms is None else slo.thinking_tpot_ms / 1e3
    return Objective(arrival_s, slo.ttft_ms / 1e3, slo.tpot_ms / 1e3, thinking_s)
