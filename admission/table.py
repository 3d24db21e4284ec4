"""Dispatched requests as columns, kept up to date by small changes: a plan need not walk thousands of objects."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast, overload

import numpy as np

from admission.lane_arrays import Columns, Floats, Ints, dtype_of
from admission.plan import Running


class RunningColumns(Columns):
    """One row per dispatched request. Names are numbered by :attr:`RunningTable.worker_names` and ``tier_names``.

    ``start_s`` is the time t0 that token deadlines count from (NaN before the first token), ``tpot_s`` infinite for
    best effort, ``made`` how many tokens came since dispatch and ``left`` the most that may still come.
    """

    prefill: Ints
    decode: Ints
    tier: Ints
    todo: Ints
    context: Ints
    generated: Ints
    made: Ints
    left: Ints
    tpot_s: Floats
    due_s: Floats
    start_s: Floats
    seen_s: Floats
    dispatched_s: Floats


ROWS = dtype_of(RunningColumns)


class Names:
    """Numbers for names, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """The number of a name."""
        return self.index.setdefault(name, len(self.index))


class RunningTable(Sequence[Running]):
    """A sequence of :class:`Running` in no particular order, each id once, with its columns beside it.

    Not thread-safe, and not to be changed while a plan is made.
    """

    def __init__(self, rows: Iterable[Running] = ()) -> None:
        self.worker_names = Names()
        self.tier_names = Names()
        self._rows: list[Running] = []
        self._at: dict[str, int] = {}
        self._columns = np.zeros(64, ROWS)
        for running in rows:
            self.put(running)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Running]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Running: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Running]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """By position."""
        return self._rows[index]

    @property
    def columns(self) -> RunningColumns:
        """Views of the filled rows; valid until the next change."""
        return cast(RunningColumns, self._columns[: len(self._rows)])

    def get(self, request_id: str) -> Running | None:
        """The request, None if it is not here."""
        at = self._at.get(request_id)
        return None if at is None else self._rows[at]

    def put(self, running: Running) -> None:
        """Add a request, or replace the one of the same id."""
        at = self._at.setdefault(running.id, len(self._rows))
        if at == len(self._rows):
            self._rows.append(running)
            if at == len(self._columns):
                self._columns = np.concatenate((self._columns, self._columns))
        else:
            self._rows[at] = running
        self._columns[at] = self._values(running)

    def remove(self, request_id: str) -> Running | None:
        """Take a request out; None if it was not here."""
        at = self._at.pop(request_id, None)
        if at is None:
            return None
        removed, last = self._rows[at], self._rows.pop()
        if last.id != request_id:
            self._rows[at] = last
            self._at[last.id] = at
            self._columns[at] = self._columns[len(self._rows)]
        return removed

    def clear(self) -> None:
        """Take everything out."""
        self._rows.clear()
        self._at.clear()

    def _values(self, running: Running) -> tuple[float, ...]:
        objective, first_s = running.objective, running.first_token_s
        start_s = float("nan")
        if first_s is not None:
            start_s = first_s if objective is None else max(first_s, objective.prefill_due_s)
        made = max(0, running.generated_tokens - running.dispatched_tokens)
        return (
            self.worker_names(running.prefill_worker),
            self.worker_names(running.decode_worker),
            self.tier_names(running.tier),
            running.todo_tokens,
            running.context_tokens,
            running.generated_tokens,
            made,
            max(0, running.max_tokens - made),
            float("inf") if objective is None else objective.tightest_tpot_s,
            float("inf") if objective is None else objective.prefill_due_s,
            start_s,
            running.seen_s or first_s or 0.0,
            running.dispatched_s,
        )


def table_of(running: Sequence[Running]) -> RunningTable:
    """The table itself, or one made of a plain sequence."""
    return running if isinstance(running, RunningTable) else RunningTable(running)
