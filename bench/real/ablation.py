"""The ladder from stock servers to the product on two real engines, one ingredient at a time, by settings it has.

All steps up to the last split prompts and decodes, as the simpler policies do. The ``without`` steps take one
ingredient from the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.case import Case
from bench.real.mode import RealMode
from bench.real.systems import Setup

STOCK = "stock"
WHOLE = "+ elastic hand-off"
LADDER: Mapping[str, Mapping[str, str] | None] = {
    STOCK: None,
    "pipeline": {"SLOS_POLICY": "fcfs", "SLOS_BATCH_POLICY": "stock", "SLOS_ELASTIC": "false"},
    "+ EDF and deferral": {"SLOS_POLICY": "edf", "SLOS_BATCH_POLICY": "stock", "SLOS_ELASTIC": "false"},
    "+ slack batching": {"SLOS_POLICY": "edf", "SLOS_ELASTIC": "false"},
    "+ planner": {"SLOS_HOLD_MS": "0", "SLOS_ELASTIC": "false"},
    "+ hold": {"SLOS_ELASTIC": "false"},
    WHOLE: {},
    "without slack batching": {"SLOS_BATCH_POLICY": "stock"},
    "without hold": {"SLOS_HOLD_MS": "0"},
}
"""Settings of the product by step; None is two stock servers behind round robin."""


def cases(mode: RealMode, case: Case, steps: Sequence[str]) -> list[Case]:
    """The case under each step; the step is its system's name. Raises KeyError for an unknown step."""
    return [replace(case, system=step, options=setup(mode.model, LADDER[step])) for step in steps]


def setup(model: str, settings: Mapping[str, str] | None) -> Setup:
    """What to start for a step."""
    if settings is None:
        return Setup("vllm", model)
    return Setup("ours", model, environment=tuple(settings.items()))
