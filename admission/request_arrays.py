"""The held requests of one plan as arrays, what may be done with them, and what was."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from admission.lane_arrays import Bools, Columns, Floats, Ints, dtype_of
from admission.plan import Held

HOLD, SEND, WAIT = 0, 1, 2
"""Actions: promised and still held, dispatched, and not placed."""


class HeldRows(Columns):
    """Held requests as :attr:`admission.plan.Held.row` has them: all times absolute, the last four 0 or 1.

    Without an objective ``due_s``, ``tpot_s`` and ``ttft_s`` are infinite. ``cached`` tokens are on the request's
    ``prefix_worker``.
    """

    due_s: Floats
    tpot_s: Floats
    ttft_s: Floats
    arrival_s: Floats
    patience_s: Floats
    tokens: Floats
    generated: Floats
    left: Floats
    cached: Floats
    value: Floats
    round: Floats
    offline: Floats
    deferred: Floats
    missed_round: Floats
    reject: Floats


class Queue(Columns):
    """Held requests, one row each. ``due_s`` and ``tpot_s`` are infinite, and ``bind`` False, without an SLO.

    ``table`` is the row of the survival table, ``prefix`` the lane that has ``cached`` tokens (-1: none), and
    ``bind`` says that the request has been held for long enough.
    """

    tokens: Floats
    due_s: Floats
    tpot_s: Floats
    generated: Ints
    left: Ints
    table: Ints
    prefix: Ints
    cached: Floats
    bind: Bools


class Rules(NamedTuple):
    """The options that compiled code knows, as plain values."""

    soon_s: float
    hop_s: float
    decode_load: float
    pack: bool
    elastic: bool
    loose_share: float
    pack_s: float
    hand_off: float
    stray: float
    head_start: float
    spoil_s: float
    optimal: bool = True
    later_round: float = 0.0
    deferral: bool = True
    offline_lag_s: float = 0.0
    owed_s: float = math.inf
    owed_ttft: float = math.inf


class Placed(Columns):
    """By request: what to do, the lanes, and when its prompt starts and ends."""

    action: Ints
    prefill: Ints
    decode: Ints
    start_s: Floats
    finish_s: Floats


HELD = dtype_of(HeldRows)
QUEUE = dtype_of(Queue)
PLACED = dtype_of(Placed)


def by_urgency(held: Sequence[Held]) -> tuple[list[Held], HeldRows]:
    """Requests with their rows in order of deadline, then of arrival."""
    rows = np.frombuffer(b"".join([one.row for one in held]), HELD)
    order = np.lexsort((rows["arrival_s"], rows["due_s"]))
    return [held[i] for i in order.tolist()], cast(HeldRows, rows[order])


def nothing_placed(count: int) -> Placed:
    """What :func:`promise` and :func:`admission.leftover.fill` write to."""
    placed = np.zeros(count, PLACED)
    placed["action"] = WAIT
    placed["prefill"] = placed["decode"] = -1
    placed["finish_s"] = math.inf
    return cast(Placed, placed)
