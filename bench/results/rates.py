"""Studies at one given rate: what each system attained there, by seed.

In bursts a capacity says which rate puts the first large clump into a run; at a given rate all systems get all clumps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.real.load import STOOD_STILL_S
from bench.results.group import LABELS, Found, Group, arrivals_of
from bench.results.table import table


def at_rates(files: Mapping[str, Found]) -> list[Group]:
    """A group for each raw file of a study at one rate."""
    found = []
    for name, raw in files.items():
        if "rate" in raw and "scenarios" in raw and "capacity" not in raw:
            settings = raw["settings"]
            preset = settings["preset"] if settings["mode"] == "sim" else ""
            found.append(Group(settings["mode"], preset, arrivals_of(settings), raw["scenarios"], {name: raw}))
    return found


def attained(group: Group) -> str:
    """By scenario and system: the share of all requests of all seeds that attained, and each seed's."""
    rows = []
    (raw,) = group.files.values()
    budget = raw["settings"].get("chunk")
    labels = LABELS | ({"vllm-tuned": f"vLLM, budget {budget}"} if budget else {})
    for scenario, of in group.scenarios.items():
        for system in (name for name in labels if name in of):
            points = of[system]["points"]
            seeds = ", ".join(f"{one['attainment']:.3f}" for one in points)
            rows.append((
                scenario, labels[system], str(sum(one["requests"] for one in points)),
                f"{_pooled(points, 'attainment'):.1%}", f"{_pooled(points, 'attainment_strict'):.1%}", seeds,
            ))  # fmt: skip
    return table(("scenario", "system", "requests", "attained", "at tolerance 0", "by seed"), rows)


def set_aside(group: Group) -> str:
    """Which runs were repeated and what they had attained; nothing of files that do not tell."""
    (raw,) = group.files.values()
    if "set_aside" not in raw:
        return ""
    told = "; ".join(
        f"{LABELS[one['system']]}, seed {one['seed']}, attained {one['attained']:.3f} with {one['sent_late_s']:g} s"
        for one in raw["set_aside"]
    )
    return f"Repeated, as the client had sent a request more than {STOOD_STILL_S:g} s late: {told or 'none'}.\n"


def heading(group: Group) -> str:
    """What was run."""
    (raw,) = group.files.values()
    return f"{group.title}, {raw['rate']:g} requests/s in all, {raw['settings']['seconds']:g} s a seed"


def _pooled(points: Sequence[Mapping[str, Any]], what: str) -> float:
    requests: int = sum(one["requests"] for one in points)
    met: float = sum(one[what] * one["requests"] for one in points)
    return met / max(1, requests)
