"""Who decodes: the worker that prefilled if a hand-off buys nothing, else where tight decodes are packed already.

Times are seconds from now, work is in tokens.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math

import numpy as np

from admission.core import kv_of
from admission.jit import compiled
from admission.lane_arrays import Fleet, Floats, Ints, Load, batch_s, refresh, tokens_in
from admission.request_arrays import Queue, Rules

KEEP = 0.5
"""Share of its decode capacity that a worker uses which does not prefer decoding, where others do."""

CHEAP_BASE = 0.4
"""A hand-off buys nothing if an iteration's fixed cost is under this share of the TPOT."""


@compiled
def may_take(fleet: Fleet, lane: int, elastic: bool) -> bool:
    """Whether prompts go to this lane: to those that prefer them, or to all that may."""
    return fleet.prefills[lane] and (elastic or fleet.likes_prefill[lane] or not fleet.likes_prefill.any())


@compiled
def may_keep(fleet: Fleet, lane: int, elastic: bool) -> bool:
    """Whether decodes go to this lane."""
    return fleet.decodes[lane] and (elastic or fleet.likes_decode[lane] or not fleet.likes_decode.any())


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
def _limit(fleet: Fleet, lane: int, rules: Rules) -> float:
    return rules.decode_load * (KEEP if not fleet.likes_decode[lane] and fleet.likes_decode.any() else 1.0)


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
        share <= _limit(fleet, lane, rules)
        and _kv_fits(i, lane, queue, fleet, load.kv, tables, kv[lane])
        and _patient(i, lane, own, queue, fleet, load)
    )


@compiled
def hand_off_targets(
    i: int, queue: Queue, fleet: Fleet, load: Load, tables: Floats, rules: Rules, kv: Floats, target: Ints
) -> None:
    """The best lane to hand decodes to, by kind of engine: the fullest that is as tight already, else the emptiest."""
    score = np.full(target.shape[0], -math.inf)
    for lane in range(fleet.kind.shape[0]):
        if not may_keep(fleet, lane, rules.elastic):
            continue
        share = used(i, lane, queue, fleet, load)
        as_tight = rules.pack and load.tightest_s[lane] <= queue.tpot_s[i]
        merit = share if as_tight else -1.0 - share
        kind = fleet.kind[lane]
        if merit > score[kind] and _takes(i, lane, False, share, queue, fleet, load, tables, rules, kv):
            score[kind], target[kind] = merit, lane


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
    if handed >= 0 and _wait_s(handed, fleet, load, rules) > queue.due_s[i] - finish_s + queue.tpot_s[i]:
        handed = -1
    if may_keep(fleet, lane, rules.elastic):
        base_s = fleet.base[lane].max()
        idle_hand_off = queue.tpot_s[i] >= load.tightest_s[lane] or base_s < CHEAP_BASE * queue.tpot_s[i]
        share = used(i, lane, queue, fleet, load)
        if (idle_hand_off or handed < 0) and _takes(i, lane, True, share, queue, fleet, load, tables, rules, kv):
            return lane
    fits_here = load.kv[lane, 0] + queue.tokens[i] + fleet.block[lane] <= fleet.kv[lane]
    return handed if fits_here else -1


@compiled
def _wait_s(lane: int, fleet: Fleet, load: Load, rules: Rules) -> float:
    """How long after its first token a decoder that is handed over may have to wait for its second."""
    step_s = batch_s(fleet, lane, load.decoders[lane] + 1, load.extra_s[lane])
    busy_s = fleet.longest_s[lane] if may_take(fleet, lane, rules.elastic) else step_s
    return rules.hop_s + busy_s + step_s
