"""The raw JSON of a study: what was run, where and on which code, and all that figures are made from.

A file is the JSON object that the command printed (capacities and reports by scenario and system, its settings), with
``format``, ``command``, ``commit``, ``dirty``, ``date`` and ``machine``. Each ``scenarios.<scenario>.<system>`` has
``points``, one for each rate and seed that was run, and may have ``run``: one run seen from near. Both modes write the
same.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = 1
MEASURED = ("admission", "api", "common", "decode_worker", "prefill_worker", "bench", ":!bench/results")
"""What a figure depends on, as git pathspecs: a raw file is up to date while nothing of it has changed."""

_ROOT = Path(__file__).parents[2]


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option of commands whose result the results page shows."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the raw results that the results page shows")


def keep(path: Path | None, module: str, argv: Sequence[str] | None, result: Mapping[str, Any]) -> None:
    """Write a command's result with where it comes from, if ``--out`` was given."""
    if path is not None:
        write(path, joined(provenance(module, sys.argv[1:] if argv is None else argv), result))


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """All options of a command, as plain values."""
    return {
        name: value
        if isinstance(value, int | float | str | None)
        else Path(value).name
        if isinstance(value, Path)
        else str(value)
        for name, value in vars(arguments).items()
    }


def provenance(module: str, argv: Sequence[str]) -> dict[str, Any]:
    """What a figure must say of how it came about; ``argv`` are the command's arguments."""
    return {
        "format": FORMAT,
        "command": " ".join(["python", "-m", module, *map(_portable, argv)]),
        "commit": commit(),
        "dirty": changed_since("HEAD"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def joined(about: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with its provenance; what a real run measured of the machine is added to what is told of it."""
    machine = about["machine"] | result.get("machine", {})
    return {**about, **result, "machine": machine}


def _portable(argument: str) -> str:
    """As a shell takes it; an absolute path means nothing on other machines."""
    return shlex.quote(Path(argument).name if argument.startswith("/") else argument)


def machine() -> dict[str, Any]:
    """The machine that ran it."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def commit() -> str:
    """The commit of the working tree, shortened; ``unknown`` outside of a repository."""
    return _git("rev-parse", "--short=10", "HEAD") or "unknown"


def changed_since(commit: str) -> bool:
    """Whether anything that figures depend on differs from that commit, or that can not be told."""
    return _git("diff", "--name-only", commit, "--", *MEASURED) != ""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def up_to_date(path: Path) -> bool:
    """Whether there is a raw file that running its command again would only repeat."""
    try:
        found = read(path)
    except (OSError, ValueError):
        return False
    return not found["dirty"] and not changed_since(found["commit"])


def write(path: Path, raw: Mapping[str, Any]) -> None:
    """Write a raw file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(raw, separators=(",", ":"), allow_nan=False) + "\n")
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read a raw file; raises ValueError naming the file if it is none."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is not a raw result of format {FORMAT}")
    return found


def read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """All raw files of a folder by name, in order of name."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
