"""Who decodes: the worker that prefilled if a hand-off buys nothing, else where tight decodes are packed already.

Times are seconds from now, work is in tokens.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

import numpy as np

from admission.core import kv_of
from admission.jit import compiled
from admission.lane_arrays import (
    Fleet,
    Floats,
    Ints,
    Load,
    batch_s,
    chunk_of,
    head_start_s,
    may_keep,
    may_take,
    refresh,
    tokens_in,
)
from admission.request_arrays import Queue, Rules

HAND_OFF = 0.05
"""Share of an idle worker's prompt rate that a hand-off must save to be worth its while."""

ROLE = 0.5
"""What prompt rate counts on workers that do not prefer prompts, where others do."""


@compiled
def used(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load) -> float:
    """Share of its tokens that the lane would spend on promised decodes with this one; infinite if it can't."""
    tightest_s = min(load.tightest_s[lane], queue.tpot_s[i])
    extra_s = load.extra_s[lane] + fleet.k_seq[lane] + fleet.k_kv[lane] * queue.tokens[i]
    room = min(fleet.max_batch[lane], tokens_in(fleet, lane, tightest_s, extra_s))
    if room <= 0 or load.decoders[lane] >= fleet.max_seqs[lane]:
        return math.inf
    return tightest_s * (load.rate[lane] + 1 / queue.tpot_s[i]) / room


@compiled
def _kv_fits(i: int, lane: int, queue: Queue, fleet: Fleet, held: Floats, tables: Floats, out: Floats) -> bool:
    """Whether the request's expected KV fits the lane; leaves it in ``out``."""
    block = fleet.block[lane]
    kv_of(tables[queue.table[i]], queue.tokens[i], queue.generated[i], queue.left[i], block, out)
    for horizon in range(out.shape[0]):  # noqa: SIM110 (numba compiles no generator)
        if held[lane, horizon] + out[horizon] > fleet.kv[lane]:
            return False
    return True


@compiled
def _patient(i: int, lane: int, own: bool, queue: Queue, fleet: Fleet, load: Load) -> bool:
    """Whether the lane's promised prompts stay in time with one more decoder, whose own prompt may be among them."""
    if load.backlog[lane] <= 0 or math.isinf(load.slack_s[lane]) or (own and after_all(i, lane, queue, load)):
        return True
    return delay_s(i, lane, queue, fleet, load) <= load.slack_s[lane]


@compiled
def after_all(i: int, lane: int, queue: Queue, load: Load) -> bool:
    """Whether a lane computes the prompt after all that it has, so that its decoder comes after them too."""
    return queue.due_s[i] >= load.last_due_s[lane]


@compiled
def delay_s(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load) -> float:
    """How much later the lane is through its backlog with one more decoder."""
    if math.isinf(load.end_s[lane]):
        return math.inf
    before = (load.decoders[lane], load.context[lane], load.tightest_s[lane], load.end_s[lane])
    load.decoders[lane] += 1
    load.context[lane] += queue.tokens[i]
    load.tightest_s[lane] = min(load.tightest_s[lane], queue.tpot_s[i])
    refresh(fleet, load, lane)
    later_s = load.end_s[lane] - before[3]
    load.decoders[lane], load.context[lane], load.tightest_s[lane] = before[0], before[1], before[2]
    refresh(fleet, load, lane)
    load.end_s[lane] = before[3]
    return later_s


@compiled
def loss(i: int, lane: int, queue: Queue, fleet: Fleet, load: Load, elastic: bool) -> float:
    """What the request's decoding would cost in prompts: the share of an idle lane's prompt rate that it takes away.

    A lane that has decoders as tight already loses little, one that computes no prompts nothing.
    """
    if not may_take(fleet, lane, elastic):
        return 0.0
    tightest_s = min(load.tightest_s[lane], queue.tpot_s[i])
    extra_s = load.extra_s[lane] + fleet.k_seq[lane] + fleet.k_kv[lane] * queue.tokens[i]
    decoders = load.decoders[lane] + 1
    chunk = chunk_of(fleet, lane, decoders, tightest_s, extra_s)
    after = chunk / batch_s(fleet, lane, chunk + decoders, extra_s)
    before = load.chunk[lane] / load.full_s[lane]
    idle = fleet.max_batch[lane] / fleet.longest_s[lane]
    role = ROLE if not fleet.likes_prefill[lane] and fleet.likes_prefill.any() else 1.0
    return role * (before - after) / idle


@compiled
def _takes(
    i: int,
    lane: int,
    own: bool,
    share: float,
    queue: Queue,
    fleet: Fleet,
    load: Load,
    tables: Floats,
    rules: Rules,
    kv: Floats,
) -> bool:
    return (
        share <= rules.decode_load
        and _kv_fits(i, lane, queue, fleet, load.kv, tables, kv[lane])
        and _patient(i, lane, own, queue, fleet, load)
    )


@compiled
def hand_off_targets(
    i: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, rules: Rules, kv: Floats, target: Ints
) -> None:
    """The best lane to decode on, by kind of engine: where it costs least in prompts, else the emptiest."""
    score = np.full(target.shape[0], math.inf)
    for lane in range(fleet.kind.shape[0]):
        if not may_keep(fleet, lane, rules.elastic):
            continue
        share = used(i, lane, queue, fleet, load)
        cost = loss(i, lane, queue, fleet, load, rules.elastic) if rules.pack else share
        kind = fleet.kind[lane]
        if cost < score[kind] and _takes(i, lane, False, share, queue, fleet, load, tables, rules, kv):
            score[kind], target[kind] = cost, lane


@compiled
def decode_lane(
    i: int,
    lane: int,
    finish_s: float,
    queue: Queue,
    fleet: Fleet,
    load: Load,
    tables: Floats,
    rules: Rules,
    kv: Floats,
    target: Ints,
) -> int:
    """Who decodes what this lane prefills by then; -1 if nobody can."""
    handed = target[fleet.kind[lane]]
    if handed == lane:
        return lane
    if (
        handed >= 0
        and finish_s + head_start_s(handed, queue.tpot_s[i], fleet, load, rules.hop_s, rules.elastic) > queue.due_s[i]
    ):
        handed = -1
    if may_keep(fleet, lane, rules.elastic):
        share = used(i, lane, queue, fleet, load)
        saved = 0.0
        if handed >= 0:
            saved = loss(i, lane, queue, fleet, load, rules.elastic)
            saved -= loss(i, handed, queue, fleet, load, rules.elastic)
        if saved <= HAND_OFF and _takes(i, lane, True, share, queue, fleet, load, tables, rules, kv):
            return lane
    fits_here = load.kv[lane].max() + queue.tokens[i] + fleet.block[lane] <= fleet.kv[lane]
    return handed if fits_here else -1
