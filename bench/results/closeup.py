"""Figures of one run seen from near: latencies by tier, a burst in time, and predictions against what came."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.results.canvas import COLOURS, label, legend, panels, style
from bench.results.group import OURS, Found, Group
from bench.results.records import QUANTILES

PREFERRED = ("mixed", "tool", "reasoning", "chatbot", "coder", "summarizer")
"""Tiers are shown from the first of these scenarios that has them."""
MOST_TIERS = 5
WAIT_CAP = 12.0
"""Waits above so many times the SLO, and those that never ended, are drawn there."""


def runs(group: Group, scenario: str) -> dict[str, Found]:
    """Runs from near by system."""
    of = group.scenarios[scenario]
    return {system: of[system]["run"] for system in group.systems if "run" in of.get(system, {})}


def has_runs(group: Group) -> bool:
    """Whether anything was seen from near."""
    return any(runs(group, scenario) for scenario in group.scenarios)


def _by_preference(group: Group) -> list[str]:
    names = [name for name in group.scenarios if runs(group, name)]
    return sorted(names, key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))


def _tiers(group: Group) -> Iterator[tuple[str, str]]:
    """Tier and the scenario it is shown from."""
    seen: set[str] = set()
    for scenario in _by_preference(group):
        for tier in next(iter(runs(group, scenario).values()))["tiers"]:
            if tier not in seen and len(seen) < MOST_TIERS:
                seen.add(tier)
                yield tier, scenario


def latencies(group: Group) -> Figure:
    """Distributions of TTFT and TPOT, a column for each tier, all systems at the same rate."""
    shown = list(_tiers(group))
    figure, axes = panels(2, len(shown), f"TTFT and TPOT at the same rate: {group.title}", width=3.1)
    handles: dict[str, Any] = {}
    for k, (tier, scenario) in enumerate(shown):
        found = runs(group, scenario)
        workers = next(iter(group.files.values()))["settings"]["workers"]
        for system, run in found.items():
            of = run["tiers"][tier]
            handles[system] = _distribution(axes[0][k], of["ttft_over_slo"], 1.0, system)
            _distribution(axes[1][k], of["tpot_ms"], 1.0, system)
        slo_ms = next(iter(found.values()))["tiers"][tier]["tpot_slo_ms"]
        for axis, slo, name in ((axes[0][k], 1.0, "TTFT / its SLO"), (axes[1][k], slo_ms, "TPOT, ms")):
            axis.axvline(slo, color="#333333", linewidth=0.9, linestyle=":")
            axis.set_xlabel(name)
            axis.set_ylim(0, 101)
        axes[0][k].set_xlim(0, 3)
        axes[1][k].set_xlim(0, 2.5 * slo_ms)
        rate = next(iter(found.values()))["rate"] / workers
        axes[0][k].set_title(f"{tier} ({scenario}, {rate:.2f}/s)")
    axes[0][0].set_ylabel("requests, %")
    axes[1][0].set_ylabel("requests, %")
    legend(figure, list(handles.values()), [label(system) for system in handles])
    return figure


def _distribution(axis: Any, quantiles: Sequence[float | None], unit: float, system: str) -> Any:
    shares = np.linspace(0, 100, QUANTILES)
    kept = [(value * unit, share) for value, share in zip(quantiles, shares, strict=False) if value is not None]
    values, heights = zip(*kept, strict=True) if kept else ((), ())
    return axis.plot(values, heights, drawstyle="steps-post", **style(system))[0]


def burst(group: Group) -> Figure:
    """The densest stretch of a run: who arrived, who waited how long against its SLO, by system."""
    scenario = _by_preference(group)[0]
    found = runs(group, scenario)
    figure, axes = panels(1 + len(found), 1, f"One burst, {scenario}: {group.title}", width=9.5, height=1.7)
    cap = _cap(found.values())
    first = next(iter(found.values()))["stretch"]["arrival_s"]
    start_s, end_s = min(first), max(first)
    edges = np.arange(start_s, end_s + 1.0, 1.0 if end_s - start_s > 15 else 0.25)
    top = axes[0][0]
    top.hist(first, bins=edges, color="#9aa5b1")
    top.set_ylabel(f"arrivals in {edges[1] - edges[0]:g} s")
    handles: dict[str, Any] = {}
    for row, (system, run) in enumerate(found.items(), start=1):
        axis, of = axes[row][0], run["stretch"]
        for kind, colour, marker in (
            ("attained", "#2a9d8f", "o"),
            ("late", "#c1121f", "x"),
            ("not promised", "#e08e0b", "^"),
        ):
            points = [(x, y) for x, y, is_kind in _waits(of, cap) if is_kind == kind]
            xs, ys = zip(*points, strict=True) if points else ((), ())
            handles[kind] = axis.scatter(xs, ys, s=12, c=colour, marker=marker, linewidths=0.9)
        axis.axhline(1.0, color="#333333", linewidth=0.9, linestyle=":")
        axis.set_ylim(0, cap * 1.05)
        share = sum(of["attained"]) / max(1, len(of["attained"]))
        axis.set_title(f"{label(system)}: {share:.0%} of these attained", loc="left", color=COLOURS[system], fontsize=9)
        axis.set_ylabel("TTFT / SLO")
    for (axis,) in axes:
        axis.set_xlim(start_s - 0.5, end_s + 0.5)
    axes[-1][0].set_xlabel(f"arrival, s into the run (waits over {cap:.3g}x the SLO and without end are drawn there)")
    legend(figure, list(handles.values()), list(handles))
    return figure


def _cap(of: Iterable[Found]) -> float:
    """How high waits are drawn: all of them up to ``WAIT_CAP`` times the SLO."""
    waits = [
        math.inf if ttft_ms is None else ttft_ms / slo_ms
        for run in of
        for ttft_ms, slo_ms in zip(run["stretch"]["ttft_ms"], run["stretch"]["ttft_slo_ms"], strict=True)
    ]
    return min(WAIT_CAP, max((2.0, *waits)))


def _waits(of: Found, cap: float) -> Iterator[tuple[float, float, str]]:
    columns = ("arrival_s", "ttft_ms", "ttft_slo_ms", "attained", "verdict")
    for at_s, ttft_ms, slo_ms, attained, verdict in zip(*(of[name] for name in columns), strict=True):
        wait = cap if ttft_ms is None or not slo_ms else min(cap, ttft_ms / slo_ms)
        yield at_s, wait, "attained" if attained else "late" if verdict == "admitted" else "not promised"


def predictions(group: Group) -> Figure | None:
    """Predicted against achieved TTFT and TPOT of ours, a column for each scenario; None without predictions."""
    found = {name: runs(group, name).get(OURS, {}).get("predicted", {}) for name in group.scenarios}
    found = {name: one for name, one in found.items() if one.get("ttft_ms")}
    if not found:
        return None
    figure, axes = panels(2, len(found), f"Predicted at admission against achieved: {group.title}", width=3.1)
    for k, (name, of) in enumerate(found.items()):
        for row, what in enumerate(("ttft", "tpot")):
            _against(axes[row][k], of[f"{what}_ms"], of[f"achieved_{what}_ms"], what.upper())
        axes[0][k].set_title(name)
    return figure


def _against(axis: Any, predicted: Sequence[float | None], achieved: Sequence[float | None], what: str) -> None:
    pairs = [(x, y) for x, y in zip(predicted, achieved, strict=True) if x is not None and y is not None and x * y > 0]
    axis.set_xlabel(f"predicted {what}, ms")
    axis.set_ylabel(f"achieved {what}, ms")
    if not pairs:
        return
    xs, ys = np.array([x for x, _ in pairs]), np.array([y for _, y in pairs])
    axis.scatter(xs, ys, s=6, c=COLOURS[OURS], alpha=0.4, linewidths=0, rasterized=True)
    high = float(np.quantile(np.concatenate((xs, ys)), 0.99)) * 1.1
    axis.plot([0, high], [0, high], color="#333333", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, high)
    axis.set_ylim(0, high)
    off = float(np.median(ys / xs))
    axis.annotate(f"median achieved / predicted: {off:.2f}", (0.03, 0.93), xycoords="axes fraction", fontsize=7)
