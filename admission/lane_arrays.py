"""The arrays that a plan works on: one row per worker ("lane"), and what it costs to compute there.

``Fleet`` is what a worker can do, ``Load`` what it has to do; planning changes only the load.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from admission.jit import compiled
from admission.memory import HORIZONS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Columns:
    """A numpy structured array whose columns compiled code names as attributes, and Python code by key.

    Subclasses list the columns for readers and type checkers; as one argument they compile in a fraction of the time
    that an array each takes.
    """

    if TYPE_CHECKING:

        def __getitem__(self, column: str) -> Any:
            """A column."""

    shape: tuple[int, ...]


class Fleet(Columns):
    """By lane. Coefficients in stretched seconds, ``k_token`` and ``base`` by roofline piece (there are
    ``pieces``); ``kv`` in tokens.

    ``max_batch`` and ``longest_s`` are of the largest batch that is counted on, ``wait_s`` is the longest that an
    engine makes. ``step_s`` is the measured pace of a decoder, ``made`` how many tokens of an iteration are counted on,
    and ``pull_s`` the time to pull a token's KV. The present iteration ends in ``ready_s``; where that is unknown, one
    was seen to end ``since_s`` ago (negative: never).
    """

    k_token: Floats
    base: Floats
    pieces: Ints
    k_seq: Floats
    k_kv: Floats
    attention: Floats
    max_batch: Floats
    longest_s: Floats
    wait_s: Floats
    max_seqs: Ints
    kv: Floats
    block: Ints
    prefills: Bools
    decodes: Bools
    likes_prefill: Bools
    likes_decode: Bools
    kind: Ints
    step_s: Floats
    made: Floats
    pull_s: Floats
    ready_s: Floats
    since_s: Floats


class Load(Columns):
    """By lane. Only promised work counts, but in ``seqs``, ``all_kv`` and ``loose_tokens`` (best-effort prompts).

    ``backlog`` is prompt work in tokens, of which ``sent`` is on the worker; ``end_s`` when it ends from now at the
    pace that its tightest decoder allows without any slack. ``link_s`` is how long it will take to pull the KV
    that it waits for, ``began_s`` when the first of its prompts came (negative: before now).
    ``chunk`` (tokens of prompts in an iteration), ``full_s`` (its length), ``extra_s`` (what it costs but for
    tokens) and ``first_s`` (a batch of decodes only, which may come before the first prompt) follow from the decoders:
    :func:`refresh`.
    """

    decoders: Ints
    seqs: Ints
    context: Floats
    tightest_s: Floats
    rate: Floats
    kv: Floats
    all_kv: Floats
    backlog: Floats
    sent: Floats
    end_s: Floats
    loose_tokens: Floats
    link_s: Floats
    began_s: Floats
    chunk: Floats
    full_s: Floats
    extra_s: Floats
    first_s: Floats


PIECES = 4
"""Pieces of a roofline that a plan knows; of more, the last are left out."""

_TYPES = {Floats: np.float64, Ints: np.int64, Bools: np.bool_}


def dtype_of(columns: type[Columns], shapes: Mapping[str, tuple[int, ...]] | None = None) -> np.dtype[Any]:
    """The row of a class of columns; ``shapes`` of columns that hold an array by row."""
    wanted = [(name, _TYPES[kind], (shapes or {}).get(name, ())) for name, kind in columns.__annotations__.items()]
    return np.dtype(wanted, align=True)


FLEET = dtype_of(Fleet, {"k_token": (PIECES,), "base": (PIECES,)})
LOAD = dtype_of(Load, {"kv": (len(HORIZONS),), "all_kv": (len(HORIZONS),)})


def empty_load(lanes: int) -> Load:
    """Lanes with nothing to do."""
    load = np.zeros(lanes, LOAD)
    load["tightest_s"] = load["began_s"] = math.inf
    return cast(Load, load)


def lane_numbers(names: Mapping[str, int], lanes: Mapping[str, int]) -> Ints:
    """Lane of each numbered worker name, -1 for workers that are gone."""
    return np.array([lanes.get(name, -1) for name in names] or [-1], dtype=np.int64)


@compiled
def batch_s(fleet: Fleet, lane: int, tokens: float, extra_s: float) -> float:
    """Length of an iteration of that many tokens, decoders' included."""
    longest = 0.0
    for piece in range(fleet.pieces[lane]):
        longest = max(longest, fleet.k_token[lane, piece] * tokens + fleet.base[lane, piece])
    return longest + extra_s


@compiled
def tokens_in(fleet: Fleet, lane: int, seconds: float, extra_s: float) -> float:
    """Most tokens of an iteration of at most ``seconds``; negative if not even an empty one is as short."""
    most = math.inf
    for piece in range(fleet.pieces[lane]):
        room = seconds - extra_s - fleet.base[lane, piece]
        if fleet.k_token[lane, piece] > 0:
            most = min(most, room / fleet.k_token[lane, piece])
        elif room < 0:
            most = -1.0
    return most


@compiled
def chunk_of(fleet: Fleet, lane: int, decoders: int, tightest_s: float, extra_s: float) -> float:
    """Prompt tokens of an iteration that no decoder is late for; 0 if there is no room."""
    most = min(fleet.max_batch[lane], tokens_in(fleet, lane, tightest_s, extra_s)) - decoders
    return max(0.0, math.floor(most))


@compiled
def drain_s(fleet: Fleet, lane: int, work: float, decoders: int, chunk: float, full_s: float, extra_s: float) -> float:
    """How long prompts of that much work take, in iterations that carry every decoder."""
    if work <= 0:
        return 0.0
    if chunk < 1:
        return math.inf
    full = math.ceil(work / chunk) - 1
    return full * full_s + batch_s(fleet, lane, work - full * chunk + decoders, extra_s)


@compiled
def refresh(fleet: Fleet, load: Load, lane: int) -> None:
    """Recompute what follows from a lane's decoders and backlog."""
    decoders = load.decoders[lane]
    extra_s = fleet.k_seq[lane] * (decoders + 1) + fleet.k_kv[lane] * load.context[lane]
    chunk = chunk_of(fleet, lane, decoders, load.tightest_s[lane], extra_s)
    load.extra_s[lane] = extra_s
    load.chunk[lane] = chunk
    load.full_s[lane] = batch_s(fleet, lane, chunk + decoders, extra_s)
    load.first_s[lane] = batch_s(fleet, lane, float(decoders), extra_s) if decoders else 0.0
    load.end_s[lane] = ends_after(fleet, load, lane, 0.0)


@compiled
def expect_ends(fleet: Fleet, load: Load, lane_of: Ints, slack_s: Floats) -> None:
    """Estimate when the present iterations end that nobody has told of.

    They follow each other since one was seen to end, or since the first prompt that waits came; with prompts they last
    until the first decoder's token is due. ``slack_s`` are of the promised decoders on ``lane_of``.
    """
    room_s = np.full(fleet.kind.shape[0], math.inf)
    for k in range(lane_of.shape[0]):
        room_s[lane_of[k]] = min(room_s[lane_of[k]], slack_s[k])
    for lane in range(fleet.kind.shape[0]):
        decoders, since_s = load.decoders[lane], fleet.since_s[lane]
        if since_s < 0 or decoders + load.sent[lane] <= 0:
            continue
        if load.began_s[lane] < 0:
            since_s = min(since_s, -load.began_s[lane])
        least_s = batch_s(fleet, lane, float(decoders), load.extra_s[lane])
        most_s = min(fleet.longest_s[lane], max(room_s[lane], least_s))
        length_s = min(most_s, batch_s(fleet, lane, decoders + load.sent[lane], load.extra_s[lane]))
        fleet.ready_s[lane] = length_s - since_s % length_s
        refresh(fleet, load, lane)


@compiled
def ends_after(fleet: Fleet, load: Load, lane: int, work: float) -> float:
    """When the lane would be through its backlog and that much more work, in seconds from now."""
    decoders = load.decoders[lane]
    total = load.backlog[lane] + work
    busy_s = drain_s(fleet, lane, total, decoders, load.chunk[lane], load.full_s[lane], load.extra_s[lane])
    return fleet.ready_s[lane] + load.first_s[lane] + busy_s


@compiled
def may_take(fleet: Fleet, lane: int, elastic: bool) -> bool:
    """Whether prompts go to this lane: to those that prefer them, or to all that may."""
    return fleet.prefills[lane] and (elastic or fleet.likes_prefill[lane] or not fleet.likes_prefill.any())


@compiled
def may_keep(fleet: Fleet, lane: int, elastic: bool) -> bool:
    """Whether decodes go to this lane."""
    return fleet.decodes[lane] and (elastic or fleet.likes_decode[lane] or not fleet.likes_decode.any())


@compiled
def head_start_s(
    lane: int, tokens: float, tpot_s: float, ends_s: float, share: float, fleet: Fleet, load: Load, hop_s: float,
    elastic: bool,
) -> float:  # fmt: skip
    """How much before its deadline a prompt must be done whose decoder goes to this lane.

    The lane pulls KV of one request after the other. It may be in the middle of its longest batch when the KV has come,
    of which ``share`` is planned for, and the second token waits for its end.
    """
    step_s = batch_s(fleet, lane, load.decoders[lane] + 1, load.extra_s[lane])
    busy_s = fleet.wait_s[lane] if may_take(fleet, lane, elastic) or load.seqs[lane] > load.decoders[lane] else step_s
    pull_s = max(0.0, load.link_s[lane] - ends_s) + fleet.pull_s[lane] * tokens
    return max(0.0, hop_s + pull_s + share * busy_s + step_s - tpot_s)


@compiled
def take_link(lane: int, tokens: float, fleet: Fleet, load: Load) -> None:
    """The lane will pull the KV of a prompt."""
    load.link_s[lane] += fleet.pull_s[lane] * tokens
