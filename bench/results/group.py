"""Raw studies that belong into one picture: one mode, engine and arrival process, with their scenarios."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.search import geometric

OURS = "ours"
LABELS = {
    OURS: "slos-serve (ours)",
    "vllm": "vLLM",
    "vllm-tuned": "vLLM, best budget",
    "vllm-spec": "vLLM, speculation",
    "vllm-prefill-first": "vLLM, prefill first",
    "sarathi": "Sarathi-Serve",
    "disagg": "disaggregated",
    "slos-serve": "paper's policy",
    "edf": "EDF, relegation",
    "bound": "upper bound",
}
"""Systems in the order in which figures show them."""
DEPLOYED = ("vllm", "vllm-tuned", "vllm-spec", "vllm-prefill-first", "sarathi", "disagg")
"""What people run today."""
PAPER_COMPARED = ("vllm-prefill-first", "sarathi", "disagg")
"""What the paper compares with."""
_ORDER = ("chatbot", "coder", "summarizer", "mixed", "tool", "reasoning")

Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """``scenarios`` by name, then system; ``files`` are raw files by name."""

    mode: str
    preset: str
    arrivals: str
    scenarios: Mapping[str, Mapping[str, Found]]
    files: Mapping[str, Found]

    @property
    def slug(self) -> str:
        """A file name."""
        return "-".join(part.replace(" ", "-") for part in (self.mode, self.preset, self.arrivals) if part)

    @property
    def engine(self) -> str:
        """What served."""
        if self.mode == "sim":
            return f"simulated {self.preset}, {self._one('workers')} workers"
        return (
            f"real engines on {self._machine()}, {self._one('workers')} workers, {self._one('parameters')} parameters"
        )

    @property
    def title(self) -> str:
        """A heading."""
        return f"{self.engine}, {self.arrivals} arrivals"

    @property
    def systems(self) -> list[str]:
        """All that were run, in the order of figures."""
        found = {system for of in self.scenarios.values() for system in of}
        return [name for name in LABELS if name in found]

    def commands(self) -> list[str]:
        """How to make the raw files again; what differs by scenario is named once."""
        found: dict[str, None] = {}
        for raw in self.files.values():
            found[re.sub(r"(--scenario[ =])\S+", r"\1SCENARIO", command_of(raw))] = None
        return list(found)

    def commits(self) -> list[str]:
        """The code that ran; ``+`` says that it had changes that were not committed."""
        return sorted({raw["commit"] + ("+" if raw["dirty"] else "") for raw in self.files.values()})

    def provenance(self) -> str:
        """Workload, engine, command and commit, for below a figure."""
        seconds = self._one("seconds")
        seeds = max(len(one["by_seed"]) for of in self.scenarios.values() for one in of.values())
        workload = f"{', '.join(self.scenarios)}; {self.arrivals} arrivals, {seconds} s, {seeds} seeds"
        return (
            f"workload: {workload} | engine: {self.engine} | {'; '.join(self.commands())} | {', '.join(self.commits())}"
        )

    def capacity(self, scenario: str, systems: Iterable[str]) -> float:
        """The highest of these systems' capacities, 0 if none was run."""
        of = self.scenarios[scenario]
        return max((of[name]["capacity"] for name in systems if name in of), default=0.0)

    def ratio(self, systems: Sequence[str]) -> float | None:
        """Geometric mean over scenarios of ours over the best of these systems in each; None if one is missing."""
        pairs = [(self.capacity(name, [OURS]), self.capacity(name, systems)) for name in self.scenarios]
        if not pairs or not all(ours > 0 and other > 0 for ours, other in pairs):
            return None
        return geometric([ours / other for ours, other in pairs]).mean

    def mean_capacity(self, system: str) -> float | None:
        """Geometric mean over scenarios, in requests per second and engine."""
        rates = [self.capacity(name, [system]) for name in self.scenarios]
        return geometric(rates).mean if rates and min(rates) > 0 else None

    def _one(self, setting: str) -> str:
        values = {_plain(raw["settings"].get(setting)) for raw in self.files.values()}
        return "/".join(sorted(values))

    def _machine(self) -> str:
        machines = {f"{raw['machine']['cores']} cores of {raw['machine']['cpu']}" for raw in self.files.values()}
        return " and ".join(sorted(machines))


def groups(files: Mapping[str, Found]) -> list[Group]:
    """Studies by mode, preset and arrivals. Other raw files are left out.

    Of one scenario the newest file wins, with those before it that had the same settings and other seeds; whether the
    code was the same, :meth:`Group.commits` tells.
    """
    found: dict[tuple[str, str, str], dict[str, Found]] = {}
    for name, raw in sorted(files.items(), key=lambda one: str(one[1]["date"])):
        if "capacity" in raw and "scenarios" in raw and "settings" in raw:
            settings = raw["settings"]
            preset = settings["preset"] if settings["mode"] == "sim" else ""
            found.setdefault((settings["mode"], preset, arrivals_of(settings)), {})[name] = raw
    return [_group(*key, of) for key, of in sorted(found.items(), key=lambda one: _rank(*one[0]))]


def _group(mode: str, preset: str, arrivals: str, files: Mapping[str, Found]) -> Group:
    newest = {scenario: name for name, raw in files.items() for scenario in raw["scenarios"]}
    scenarios: dict[str, Mapping[str, Found]] = {}
    kept: set[str] = set()
    for scenario in sorted(newest, key=lambda one: (_ORDER.index(one) if one in _ORDER else len(_ORDER), one)):
        parts = _parts(scenario, newest[scenario], files)
        systems = {system for name in parts for system in files[name]["scenarios"][scenario]}
        scenarios[scenario] = {
            system: _together(
                [of[system] for of in (files[name]["scenarios"][scenario] for name in parts) if system in of]
            )
            for system in sorted(systems)
        }
        kept |= set(parts)
    return Group(mode, preset, arrivals, scenarios, {name: raw for name, raw in files.items() if name in kept})


def _parts(scenario: str, newest: str, files: Mapping[str, Found]) -> list[str]:
    """Files that share a scenario's seeds, in the order of those."""
    parts = [newest]
    for name, raw in reversed(list(files.items())):
        if scenario not in raw["scenarios"] or _but_seeds(raw) != _but_seeds(files[newest]):
            continue
        if not any(_seeds(raw) & _seeds(files[other]) for other in parts):  # the newest is among them
            parts.append(name)
    return sorted(parts, key=lambda name: min(_seeds(files[name]), default=0))


def _but_seeds(raw: Found) -> Found:
    varied = ("first_seed", "seeds", "out", "json", "jobs", "log_dir", "recalibrate")
    return {"machine": raw["machine"]} | {key: value for key, value in raw["settings"].items() if key not in varied}


def _seeds(raw: Found) -> set[int]:
    first = raw["settings"].get("first_seed", 1)
    return set(range(first, first + raw["settings"].get("seeds", 1)))


def _together(parts: Sequence[Found]) -> Found:
    """One system's capacity over all seeds; what is shown of one run is of the first."""
    if len(parts) == 1:
        return parts[0]
    by_seed = [rate for part in parts for rate in part["by_seed"]]
    attained = sum(part["attainment"] * len(part["by_seed"]) for part in parts) / len(by_seed)
    worst = [part["deferred_ttft_over_slo_p99"] for part in parts]
    return {
        **parts[0],
        "capacity": geometric(by_seed).mean,
        "by_seed": by_seed,
        "attainment": attained,
        "deferred_ttft_over_slo_p99": None if None in worst else max(worst),
        "points": [point for part in parts for point in part.get("points", ())],
    }


def command_of(raw: Found) -> str:
    """The command, without where it wrote."""
    return re.sub(r" --(out|log-dir)[ =]\S+", "", str(raw["command"]))


def arrivals_of(settings: Found) -> str:
    """How requests came, in a word or a few."""
    arrivals = str(settings["arrivals"])
    if settings.get("workload"):
        return Path(settings["workload"]).stem
    return f"trace of {Path(settings['trace']).stem}" if arrivals == "trace" and settings.get("trace") else arrivals


def _rank(mode: str, preset: str, arrivals: str) -> tuple[Any, ...]:
    order = ("poisson", "bursty", "phased")
    return (mode != "sim", preset, order.index(arrivals) if arrivals in order else len(order), arrivals)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
