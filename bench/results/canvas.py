"""What all figures share: size, colours by system, and the line below that says where the data come from."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

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
FOOT = 150
"""Characters of a line of provenance."""

_STYLE: dict[str, Any] = {
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


def panels(rows: int, columns: int, title: str, width: float = PANEL_WIDTH) -> tuple[Figure, list[list[Any]]]:
    """An empty figure with a grid of axes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width * columns, PANEL_HEIGHT * rows + 1.3), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=11, fontweight="bold")
    return figure, [list(row) for row in axes]


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for all panels, below them."""
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=9)


def save(figure: Figure, group: Group, path: Path) -> None:
    """Write the figure with its provenance in the last lines."""
    wide = round(FOOT * figure.get_size_inches()[0] / 10.8)
    text = "\n".join(textwrap.wrap(group.provenance(), wide))
    figure.text(0.01, -0.01, text, fontsize=6.5, color="#666666", va="top", family="DejaVu Sans Mono")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata=metadata)


def label(system: str) -> str:
    """A system's name for a reader."""
    return LABELS[system]
