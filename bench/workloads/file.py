"""Workload files: one JSON object a line, the fields of :class:`bench.workloads.item.Item`."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from bench.workloads.item import Item, in_order
from common.errors import WorkloadError

FIELDS = {field.name for field in fields(Item)}
REQUIRED = {field.name for field in fields(Item) if field.default is MISSING}


def write_workload(path: Path, items: Iterable[Item]) -> None:
    """Write a workload file."""
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))


def read_workload(path: Path) -> list[Item]:
    """Read a workload file; raises WorkloadError naming line and field."""
    return parse_workload(read_lines(path), str(path))


def read_lines(path: Path) -> list[str]:
    """Lines of a text file; raises WorkloadError if it can't be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: {error}") from error


def parse_workload(lines: Iterable[str], name: str) -> list[Item]:
    """Items of the lines, blank ones left out, in order of arrival; raises WorkloadError."""
    items = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                items.append(_item(json.loads(line)))
            except (json.JSONDecodeError, WorkloadError) as error:
                raise WorkloadError(f"{name}:{number}: {error}") from error
    if not items:
        raise WorkloadError(f"{name}: no requests")
    started = set[str]()
    for item in in_order(items):
        if item.after_s is not None and item.session not in started:
            raise WorkloadError(f"{name}: session {item.session!r}: its first round has after_s")
        started.add(item.session)
    return in_order(items)


def _item(raw: Any) -> Item:
    if not isinstance(raw, dict):
        raise WorkloadError("must be an object")
    unknown, missing = raw.keys() - FIELDS, REQUIRED - raw.keys()
    if unknown or missing:
        raise WorkloadError(f"unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    return Item(**raw)
