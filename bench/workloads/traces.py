"""Trace files of others: Azure's CSV and Mooncake's JSONL become our workload items; ours is read as it is."""

import csv
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.workloads.file import parse_workload, read_lines
from bench.workloads.item import Item, in_order
from common.errors import WorkloadError

AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


def read_trace(path: Path, tier: str = "chat") -> list[Item]:
    """Read a trace of any of the three formats; requests of other formats than ours get ``tier``.

    Raises WorkloadError naming the line.
    """
    lines = read_lines(path)
    first = next((line.strip() for line in lines if line.strip()), "")
    if [cell.strip() for cell in first.split(",")] == AZURE:
        return _azure(lines, str(path), tier)
    if first.startswith("{") and '"timestamp"' in first:
        return _mooncake(lines, str(path), tier)
    return parse_workload(lines, str(path))


def _azure(lines: Iterable[str], name: str, tier: str) -> list[Item]:
    items = []
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            at_s = _timestamp_s(row["TIMESTAMP"])
            items.append((at_s, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
        except (ValueError, TypeError) as error:
            raise WorkloadError(f"{name}:{number}: {error}") from error
    return _items(items, name, tier)


def _timestamp_s(text: str) -> float:
    """Seconds of a timestamp with seven digits after the point, of which datetime takes six."""
    whole, _, fraction = text.partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or '0'}")


def _mooncake(lines: Iterable[str], name: str, tier: str) -> list[Item]:
    items = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                raw: Any = json.loads(line)
                items.append((float(raw["timestamp"]) / 1e3, int(raw["input_length"]), int(raw["output_length"])))
            except (ValueError, KeyError, TypeError) as error:
                raise WorkloadError(f"{name}:{number}: {error!r}") from error
    return _items(items, name, tier)


def _items(rows: Sequence[tuple[float, int, int]], name: str, tier: str) -> list[Item]:
    if not rows:
        raise WorkloadError(f"{name}: no requests")
    start_s = min(row[0] for row in rows)
    return in_order(
        [
            Item(at_s - start_s, f"s{i}", tier, max(1, prompt), max(1, output))
            for i, (at_s, prompt, output) in enumerate(rows)
        ]
    )
