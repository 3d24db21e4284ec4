"""The held requests of one plan as arrays, what may be done with them, and what was."""

import math
from typing import NamedTuple, cast

import numpy as np

from admission.lane_arrays import Bools, Columns, Floats, Ints, dtype_of

HOLD, SEND, WAIT = 0, 1, 2
"""Actions: promised and still held, dispatched, and not placed."""


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
    """The options that placement knows, as plain values."""

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


class Placed(Columns):
    """By request: what to do, the lanes, and when its prompt starts and ends."""

    action: Ints
    prefill: Ints
    decode: Ints
    start_s: Floats
    finish_s: Floats


QUEUE = dtype_of(Queue)
PLACED = dtype_of(Placed)


def nothing_placed(count: int) -> Placed:
    """What :func:`promise` and :func:`admission.leftover.fill` write to."""
    placed = np.zeros(count, PLACED)
    placed["action"] = WAIT
    placed["prefill"] = placed["decode"] = -1
    placed["finish_s"] = math.inf
    return cast(Placed, placed)
