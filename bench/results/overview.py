"""Figures of capacities: attainment over rate, and bars, by scenario and system."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from bench.results.canvas import COLOURS, label, legend, panels, style
from bench.results.group import Found, Group

ENOUGH = 0.9


def attainment(group: Group) -> Figure:
    """Attainment over rate, a panel for each scenario."""
    names = list(group.scenarios)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = panels(rows, columns, f"Attainment over rate: {group.title}", width=max(3.6, 7.2 / columns))
    handles: dict[str, Any] = {}
    for i, name in enumerate(names):
        axis = axes[i // columns][i % columns]
        for system in group.systems:
            found = group.scenarios[name].get(system)
            points = [] if found is None or system == "bound" else _curve(found)
            if not points:
                continue
            rates, shares = zip(*points, strict=True)
            (handles[system],) = axis.plot(rates, [100 * one for one in shares], marker=".", **style(system))
        if "bound" in group.scenarios[name]:
            handles["bound"] = _bound(axis, group.scenarios[name]["bound"]["capacity"])
        axis.axhline(100 * ENOUGH, color="#333333", linewidth=0.8, linestyle=":")
        axis.set_title(name)
        axis.set_ylim(-2, 103)
        axis.set_xlim(left=0)
        axis.set_xlabel("requests/s and engine")
        axis.set_ylabel("SLOs attained, %")
    for i in range(len(names), rows * columns):
        axes[i // columns][i % columns].axis("off")
    legend(figure, list(handles.values()), [label(system) for system in handles])
    return figure


def _bound(axis: Any, rate: float) -> Any:
    """A line where no system can pass, or a word where that is far away."""
    right = axis.get_xlim()[1]
    if rate > 1.2 * right:
        axis.annotate(f"upper bound {rate:.3g} →", (0.98, 0.04), xycoords="axes fraction", ha="right", fontsize=8)
        return axis.plot([], [], **style("bound"))[0]
    axis.set_xlim(right=max(right, 1.05 * rate))
    return axis.axvline(rate, **style("bound"))


def _curve(found: Found) -> list[tuple[float, float]]:
    """Means over seeds by rate: the common rates if there are, else those that the search has tried."""
    by_rate: dict[float, list[float]] = defaultdict(list)
    for point in found.get("curve") or found.get("points", ()):
        by_rate[_near(point["rate"], by_rate)].append(point["attainment"])
    return sorted((rate, fmean(shares)) for rate, shares in by_rate.items())


def _near(rate: float, known: Mapping[float, Sequence[float]]) -> float:
    """Rates within 2 % of each other are one point."""
    return next((one for one in known if abs(one / rate - 1) < 0.02), rate)


def capacities(group: Group) -> Figure:
    """Bars of capacities with their seeds, a cluster for each scenario."""
    names, systems = list(group.scenarios), group.systems
    figure, ((axis,),) = panels(1, 1, f"Capacity: {group.title}", width=max(7.0, 1.8 * len(names)))
    handles = []
    width = 0.84 / len(systems)
    for k, system in enumerate(systems):
        at = [i + (k - (len(systems) - 1) / 2) * width for i in range(len(names))]
        found = [group.scenarios[name].get(system) for name in names]
        heights = [one["capacity"] if one else 0.0 for one in found]
        hollow = system == "bound"
        handles.append(
            axis.bar(
                at, heights, width * 0.92, label=label(system),
                color="none" if hollow else COLOURS[system], edgecolor=COLOURS[system], linewidth=0.8,
                linestyle="--" if hollow else "-",
            )
        )  # fmt: skip
        for x, one in zip(at, found, strict=True):
            seeds = one["by_seed"] if one else []
            axis.plot([x] * len(seeds), seeds, linestyle="", marker="_", color="black", markersize=4, linewidth=0.6)
            if one and system == "ours":
                axis.annotate(
                    f"{one['capacity']:.2f}",
                    (x, max(seeds)),
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    color=COLOURS[system],
                )
    axis.set_xticks(range(len(names)), names)
    axis.grid(visible=False, axis="x")
    axis.set_ylabel("requests/s and engine at 90 % attained")
    legend(figure, handles, [label(system) for system in systems])
    return figure
