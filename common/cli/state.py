"""What a running ``up`` tells other commands: a small JSON file, replaced at each change, removed at the end."""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.cli.supervisor import ChildStatus


@dataclass(frozen=True, slots=True)
class UpState:
    """Addresses and processes of a running pipeline; ``pid`` is the supervisor's."""

    pid: int
    url: str
    redis_url: str
    started_s: float
    children: tuple[ChildStatus, ...] = ()


def write_state(path: Path, state: UpState, children: Sequence[ChildStatus]) -> None:
    """Replace the file in one step, readable by its owner only: a Redis URL may hold a password."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = asdict(state) | {"children": [asdict(child) for child in children]}
    fresh = path.with_suffix(".new")
    with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(body, file, indent=1)
    fresh.replace(path)


def read_state(path: Path) -> UpState | None:
    """The state of the pipeline that runs now; None if none does."""
    try:
        body = json.loads(path.read_text())
        children = tuple(ChildStatus(**child) for child in body.pop("children"))
        state = UpState(**body, children=children)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if _alive(state.pid) else None


def remove_state(path: Path) -> None:
    """Nothing runs any more."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
