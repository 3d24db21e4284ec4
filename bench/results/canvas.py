"""What all figures share: size, colours by system, and the line below that says where the data come from."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bench.results.group import LABELS, Group

COLOURS = {
    "ours": "#c1121f",
    "vllm": "#1d4e89",
    "vllm-tuned": "#1d4e89",
    "vllm-spec": "#4f9dd1",
    "vllm-prefill-first": "#8bb8a8",
    "sarathi": "#2a9d8f",
    "disagg": "#8f6db0",
    "slos-serve": "#e08e0b",
    "edf": "#9a8c7a",
    "bound": "#555555",
}
PANEL_WIDTH, PANEL_HEIGHT = 3.6, 2.7
LEAST_WIDTH, BELOW = 8.0, 1.25
"""Inches; below the panels stand the legend and the provenance."""
CHARACTERS_PER_INCH = 18
"""Of the provenance."""

mpl.rcParams |= {
    "svg.hashsalt": "slos-serve",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def style(system: str) -> dict[str, Any]:
    """Line style of a system."""
    ours = system == "ours"
    dashes = "--" if system == "bound" else "-"
    return {
        "color": COLOURS[system],
        "linestyle": dashes,
        "linewidth": 2.4 if ours else 1.4,
        "zorder": 3 if ours else 2,
    }


def panels(
    rows: int, columns: int, title: str, width: float = PANEL_WIDTH, height: float = PANEL_HEIGHT
) -> tuple[Figure, list[list[Any]]]:
    """An empty figure with a grid of axes, and room below it for the legend and the provenance."""
    size = (max(LEAST_WIDTH, width * columns), height * rows + 0.4 + BELOW)
    room = ConstrainedLayoutEngine(rect=(0, BELOW / size[1], 1, 1 - BELOW / size[1]))
    figure = Figure(figsize=size, layout=room)
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure, [list(row) for row in axes]


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for all panels, below them."""
    columns = min(len(labels), max(1, int(figure.get_size_inches()[0] / 1.8)))
    at = (0.5, BELOW / figure.get_size_inches()[1])
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=at, ncols=columns, fontsize=9)


def save(figure: Figure, group: Group, path: Path) -> None:
    """Write the figure with its provenance in the last lines."""
    width, height = figure.get_size_inches()
    text = "\n".join(textwrap.wrap(group.provenance(), round(CHARACTERS_PER_INCH * width)))
    figure.text(0.01, 0.05 / height, text, fontsize=6, color="#666666", va="bottom", family="DejaVu Sans Mono")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    _settle(figure)
    figure.savefig(path, dpi=130, metadata=metadata)


def label(system: str) -> str:
    """A system's name for a reader."""
    return LABELS[system]


def _settle(figure: Figure) -> None:
    """Lay the figure out and round: the solver's last bits differ from run to run, and so would files."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((round(left, 4), round(bottom, 4), round(width, 4), round(height, 4)))
