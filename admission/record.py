"""The planner's log: every plan with all that it depended on, bounded; and a replay that says which plans differ.

A log is a file of length-prefixed messages (:mod:`common.codec`), each a plan with its state, or a survival table
that later states refer to by version. When it has grown to its bound it becomes ``<log>.1``, and a new one starts.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from admission.memory import Survival
from admission.options import PlannerOptions
from admission.plan import ClusterState, Held, Plan, Policy, Running, Worker
from admission.policies import POLICIES
from common.codec import decode_any, encode, message
from common.errors import CodecError
from common.latency_model import LatencyModel
from common.messages import Decision, Stage

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One tier's survival table."""

    tier: str
    table: tuple[float, ...]


@message
@dataclass(frozen=True, slots=True)
class SurvivalEntry:
    """The survival tables that the next plans used."""

    version: int
    tables: tuple[TableEntry, ...]


@dataclass(frozen=True, slots=True)
class WorkerEntry:
    """A :class:`Worker`; its stages in order, as sets have none. New fields come last, with what old logs mean."""

    id: str
    prefers: Stage
    may: tuple[Stage, ...]
    latency: LatencyModel
    max_seqs: int
    max_batch_tokens: int
    block_size: int
    total_blocks: int
    free_blocks: int
    running: int
    fingerprint: str
    step_s: float
    busy_until_s: float
    draft_tokens: float = 1.0
    pull_s: float = 0.0
    stepped_s: float = 0.0
    slowdown: float = 1.0


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision about a request."""

    request: str
    decision: Decision


@message
@dataclass(frozen=True, slots=True)
class PlanEntry:
    """One plan: what went in and what came out. ``survival`` is the version of the last :class:`SurvivalEntry`."""

    policy: str
    options: Mapping[str, Any]
    now_s: float
    cycle: int
    held: tuple[Held, ...]
    running: tuple[Running, ...]
    workers: tuple[WorkerEntry, ...]
    hop_s: float
    survival: int | None
    dispatch: tuple[Decided, ...]
    defer: tuple[Decided, ...]
    reject: tuple[Decided, ...]
    arriving: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A request that a replay decides otherwise; None is "stays held" or, for ``decided``, what the log says."""

    cycle: int
    request: str
    logged: Decision | None
    replayed: Decision | None


class PlanLog:
    """Appends plans to a file of at most ``max_bytes``, keeping one former file. Raises OSError where that fails."""

    def __init__(
        self,
        path: Path,
        options: PlannerOptions | None = None,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._path = path
        self._options = asdict(options or PlannerOptions())
        self._max_bytes = max_bytes
        self._survival: int | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab")

    def add(self, policy: str, state: ClusterState, now_s: float, plan: Plan) -> None:
        """Write one plan of a policy named so; plans that decide nothing are left out."""
        if not (plan.dispatch or plan.defer or plan.reject):
            return
        version = None if state.survival is None else state.survival.version
        if state.survival is not None and version != self._survival:
            tables = tuple(TableEntry(tier, table) for tier, table in state.survival.tables.items())
            self._write(encode(SurvivalEntry(state.survival.version, tables)))
            self._survival = version
        entry = PlanEntry(
            policy,
            self._options,
            now_s,
            state.cycle,
            tuple(state.held),
            tuple(state.running),
            tuple(_worker_entry(worker) for worker in state.workers.values()),
            state.hop_s,
            version,
            _decided(plan.dispatch),
            _decided(plan.defer),
            _decided(plan.reject),
            state.arriving,
        )
        self._write(encode(entry))
        self._file.flush()  # a planner that is killed leaves what it decided
        if self._file.tell() > self._max_bytes:
            self._rotate()

    def close(self) -> None:
        """Close the file; nothing can be added any more."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(_LENGTH.pack(len(data)) + data)

    def _rotate(self) -> None:
        self._file.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file = self._path.open("ab")
        self._survival = None


def read_log(path: Path) -> Iterator[tuple[PlanEntry, ClusterState]]:
    """Plans of a log with their states; a last entry that was cut off is left out. Raises CodecError for other data."""
    survival: Survival | None = None
    for item in _messages(path):
        if isinstance(item, SurvivalEntry):
            survival = Survival(item.version, {entry.tier: entry.table for entry in item.tables})
        elif isinstance(item, PlanEntry):
            workers = {entry.id: _worker(entry) for entry in item.workers}
            known = None if item.survival is None else survival
            if item.survival is not None and (known is None or known.version != item.survival):
                raise CodecError(f"{path}: plan {item.cycle} refers to survival tables that are not there")
            held, running = item.held, item.running
            yield item, ClusterState(item.cycle, held, running, workers, item.hop_s, known, item.arriving)
        else:
            raise CodecError(f"{path} is not a log of plans")


def replay(path: Path, plan: Callable[[ClusterState, float], Plan] | None = None) -> Iterator[Difference]:
    """Plan again what a log says, and yield every decision that differs; none may.

    ``plan`` defaults to the policy that the log names, with the options that it had. Raises CodecError if this version
    has no such policy or option.
    """
    policies: dict[str, Policy] = {}
    for entry, state in read_log(path):
        name = f"{entry.policy} {sorted(entry.options.items())}"
        if plan is None and name not in policies:
            policies[name] = _policy(path, entry)
        again = (plan or policies[name].plan)(state, entry.now_s)
        kinds = ((entry.dispatch, again.dispatch), (entry.defer, again.defer), (entry.reject, again.reject))
        for logged, replayed in kinds:
            yield from _differences(entry.cycle, {one.request: one.decision for one in logged}, replayed)


def _policy(path: Path, entry: PlanEntry) -> Policy:
    try:
        return POLICIES[entry.policy](PlannerOptions(**entry.options))
    except (KeyError, TypeError, ValueError) as error:
        raise CodecError(f"{path}: another version planned this, with what this one does not have: {error}") from error


def _differences(cycle: int, logged: Mapping[str, Decision], replayed: Mapping[str, Decision]) -> Iterator[Difference]:
    for request in sorted({*logged, *replayed}):
        old, new = logged.get(request), replayed.get(request)
        if old != new:
            yield Difference(cycle, request, old, new)


def _decided(decisions: Mapping[str, Decision]) -> tuple[Decided, ...]:
    return tuple(Decided(request, decision) for request, decision in decisions.items())


def _worker_entry(worker: Worker) -> WorkerEntry:
    values = {field.name: getattr(worker, field.name) for field in fields(WorkerEntry)}
    return WorkerEntry(**{**values, "may": tuple(sorted(worker.may))})


def _worker(entry: WorkerEntry) -> Worker:
    values = {field.name: getattr(entry, field.name) for field in fields(WorkerEntry)}
    return Worker(**{**values, "may": frozenset(entry.may)})


def _messages(path: Path) -> Iterator[object]:
    with path.open("rb") as file:
        while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            data = file.read(length)
            if len(data) < length:
                return
            yield decode_any(data)


__all__ = ["Difference", "PlanEntry", "PlanLog", "SurvivalEntry", "read_log", "replay"]
