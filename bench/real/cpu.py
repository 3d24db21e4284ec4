"""CPU time of processes and all their descendants, from ``/proc``."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ENGINE_CORE = "VLLM::"
"""What vLLM calls its engine processes; the name survives in ``comm``, cut to 15 characters."""


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds, user and system, by name of the process that was asked about."""

    outside_s: Mapping[str, float]
    engines_s: float

    @property
    def total_outside_s(self) -> float:
        """Of all that is not an engine."""
        return sum(self.outside_s.values())

    def since(self, before: "Usage") -> "Usage":
        """What was used in between."""
        outside = {name: used - before.outside_s.get(name, 0.0) for name, used in self.outside_s.items()}
        return Usage(outside, self.engines_s - before.engines_s)


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    comm: str
    cpu_s: float


def usage(roots: Mapping[str, int]) -> Usage:
    """CPU seconds so far of processes (by name, with pid) and their descendants; engine processes apart.

    A descendant that has a name itself counts under that only.
    """
    table = {process.pid: process for process in _all()}
    children: dict[int, list[int]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    outside: dict[str, float] = {}
    engines_s = 0.0
    for name, root in roots.items():
        for pid in _tree(root, children, set(roots.values())):
            found = table.get(pid)
            if found is None:
                continue
            if found.comm.startswith(ENGINE_CORE):
                engines_s += found.cpu_s
            else:
                outside[name] = outside.get(name, 0.0) + found.cpu_s
    return Usage(outside, engines_s)


def keep_engine_to(root: int, cpus: Collection[int]) -> None:
    """Let the engines among a process's descendants compute on these CPUs only; raises OSError."""
    children: dict[int, list[int]] = {}
    names = {}
    for process in _all():
        children.setdefault(process.parent, []).append(process.pid)
        names[process.pid] = process.comm
    for pid in _tree(root, children, ()):
        if names.get(pid, "").startswith(ENGINE_CORE):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), cpus)


def _tree(root: int, children: Mapping[int, Iterable[int]], named: Collection[int]) -> list[int]:
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left += [child for child in children.get(pid, ()) if child not in named]
    return found


def _all() -> Iterable[_Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except OSError:
                continue  # it has ended
            comm, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
            yield _Process(int(folder.name), int(fields[1]), comm, (int(fields[11]) + int(fields[12])) / TICKS_PER_S)
