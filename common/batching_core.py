"""The batch policy compiled: the same steps in the same order as :mod:`common.batching_reference`, on columns.

Arrays go in and out, so that planning 256 sequences costs tens of microseconds. What the steps are for is told
there; every function here is named as its twin.
"""

from math import floor, inf, sqrt

import numpy as np

from common.batching_table import CREDIT, FAR, HURRY, LEAST, LOOSE, PACE, SKIP, Bools, Floats, Ints, Table, compiled

TOKENS, SEQS, KV, ATTENDED, DRAFTS, FREE, RUNNING, RESERVED, HEADROOM, PLACED, EVICTED = range(11)
PLACE, NO_TIME, NO_ROOM = 0, 1, 2


@compiled
def form(t: Table) -> tuple[int, int, float, float]:
    """Fill the last columns of the rows and return (placed, evicted, seconds, credit)."""
    at = _start(t)
    decoders, prompts, spare = t.decoders, t.prompts, t.spare
    tightest_s = inf
    for i in decoders:
        tightest_s = min(tightest_s, _distance(t, i))
    drafted = _decode_s(t, decoders, True) <= tightest_s
    needed_s = _decode_s(t, decoders, drafted)
    alone = len(decoders) + len(prompts) == 0
    base_s = _decode_s(t, spare, True) if alone else needed_s
    limit_s, strict_s, whole_s = _lengths(t, decoders, needed_s, base_s)
    for i in prompts:
        tightest_s = min(tightest_s, _distance(t, i))
    far = tightest_s > FAR * whole_s
    limit_s = whole_s if far else limit_s
    loose = _loose_ones(t, decoders, prompts, needed_s, inf if far else limit_s)

    for i in decoders:
        if not loose[i]:
            _decode(t, at, i, drafted)
    owed = _add_spare(t, at, spare, limit_s, floor(t.credit), alone)
    if not _add_prompts(t, at, prompts, limit_s, whole_s):
        for i in decoders:
            if loose[i]:
                _decode(t, at, i, drafted)
    free = _add_spare(t, at, spare, strict_s, t.max_tokens, alone)
    if at[PLACED] == 0:
        _add_anything(t, at, decoders, prompts, spare)
    credit = min(CREDIT, max(0.0, t.credit + t.share * at[TOKENS] - owed - free))
    seconds = _predicted(t, at[TOKENS], at[SEQS], at[KV], at[ATTENDED], at[DRAFTS])
    return int(at[PLACED]), int(at[EVICTED]), seconds, credit if len(spare) else 0.0


@compiled
def _start(t: Table) -> Floats:
    at = np.zeros(11)
    at[FREE] = t.free_blocks
    for i in range(len(t.rows.todo)):
        at[RUNNING] += t.rows.running[i]
        at[HEADROOM] += t.rows.promised[i] and t.rows.running[i]
        if t.rows.running[i] and not t.rows.decoding[i]:
            at[RESERVED] += _chunk_blocks(t, i, t.rows.todo[i])
    return at


@compiled
def _blocks(t: Table, tokens: int) -> int:
    return -(-tokens // t.block_size)


@compiled
def _chunk_blocks(t: Table, i: int, tokens: int) -> int:
    return _blocks(t, t.rows.context[i] + tokens + t.lookahead) - _blocks(t, t.rows.context[i])


@compiled
def _predicted(t: Table, tokens: float, seqs: float, kv: float, attended: float, drafts: float) -> float:
    linear = -inf
    for p in range(len(t.pieces)):
        linear = max(linear, t.pieces[p, 0] * tokens + t.pieces[p, 1] * drafts + t.pieces[p, 2])
    return float(linear + t.k_seq * seqs + t.k_kv * kv + t.k_attn * attended)


@compiled
def _distance(t: Table, i: int) -> float:
    return float((t.rows.due[i] - t.now_s) * (1 - t.margin))


@compiled
def _decode_s(t: Table, decoders: Ints, drafted: bool) -> float:
    tokens = kv = longest = seqs = 0
    for i in decoders:
        if t.rows.decoding[i]:
            draft = t.rows.drafts[i] if drafted else 0
            tokens += 1 + draft
            kv += t.rows.context[i]
            longest = max(longest, draft)
            seqs += 1
    return _predicted(t, tokens, seqs, kv, 0.0, longest)


@compiled
def _lengths(t: Table, decoders: Ints, needed_s: float, base_s: float) -> tuple[float, float, float]:
    margin = 1 - t.margin
    limit_s = strict_s = max(t.longest_s, base_s / PACE)
    whole_s = max(t.whole_s, base_s / PACE)
    for i in decoders:
        room_s = max(_distance(t, i), needed_s)
        strict_s = min(strict_s, room_s)
        if t.rows.due[i] - t.now_s < needed_s:
            pace_s = (t.rows.due[i] + (t.rows.checked[i] - 1) * t.rows.tpot[i] - t.now_s) / t.rows.checked[i] * margin
            room_s = max(pace_s if pace_s >= needed_s else t.rows.tpot[i] * margin, needed_s / HURRY)
        limit_s, whole_s = min(limit_s, room_s), min(whole_s, room_s)
    return limit_s, strict_s, whole_s


@compiled
def _loose_ones(t: Table, decoders: Ints, prompts: Ints, needed_s: float, limit_s: float) -> Bools:
    loose = np.zeros(len(t.rows.todo), np.bool_)
    crowded = needed_s - _predicted(t, 0, 0, 0, 0.0, 0) > SKIP * limit_s
    waiting = False
    for i in prompts:
        waiting = waiting or not t.rows.remote[i]
    if crowded and waiting:
        for i in decoders:
            loose[i] = _distance(t, i) > max(LOOSE * limit_s, limit_s + LOOSE * needed_s)
    return loose


@compiled
def _fitting(t: Table, at: Floats, i: int, limit_s: float) -> int:
    others_s = t.k_seq * (at[SEQS] + 1) + t.k_kv * at[KV] + t.k_attn * at[ATTENDED]
    most = inf
    for p in range(len(t.pieces)):
        room_s = limit_s - others_s - t.pieces[p, 2] - t.pieces[p, 1] * at[DRAFTS] - t.pieces[p, 0] * at[TOKENS]
        linear, square = t.pieces[p, 0] + t.k_attn * t.rows.context[i], t.k_attn / 2
        if room_s <= 0:
            return 0
        if square * room_s > 1e-12 * linear * linear:
            most = min(most, (sqrt(linear * linear + 4 * square * room_s) - linear) / (2 * square))
        elif linear > 0:
            most = min(most, room_s / linear)
    return int(min(most, t.max_tokens))


@compiled
def _decode(t: Table, at: Floats, i: int, drafted: bool) -> int:
    tokens = min(1 + (t.rows.drafts[i] if drafted else 0), t.max_tokens - int(at[TOKENS]))
    if tokens <= 0:
        return NO_TIME
    need = _chunk_blocks(t, i, tokens)
    if t.rows.is_preempted[i] or not _make_room(t, at, i, need):
        return NO_ROOM
    at[FREE] -= need
    at[KV] += t.rows.context[i]
    at[DRAFTS] = max(at[DRAFTS], tokens - 1)
    return _place(t, at, i, tokens)


@compiled
def _prompt(t: Table, at: Floats, i: int, limit_s: float, most: int) -> int:
    if t.rows.is_preempted[i]:
        return NO_ROOM
    tokens = 0
    if not t.rows.remote[i]:
        tokens = min(min(t.rows.todo[i], t.max_tokens - int(at[TOKENS])), min(most, _fitting(t, at, i, limit_s)))
        if tokens < min(t.rows.todo[i], t.max_tokens, 1 if t.rows.due[i] < t.now_s else LEAST):
            return NO_TIME
    whole = _chunk_blocks(t, i, t.rows.todo[i])
    if not t.rows.running[i]:
        headroom = int(at[RESERVED]) + (0 if t.rows.promised[i] else int(at[HEADROOM]))
        if not _make_room(t, at, i, whole + headroom):
            return NO_ROOM
        at[RUNNING] += 1
        at[RESERVED] += 0 if t.rows.remote[i] else whole
    elif not _make_room(t, at, i, _chunk_blocks(t, i, tokens)):
        tokens = min(
            tokens,
            (_blocks(t, t.rows.context[i]) + max(0, int(at[FREE]))) * t.block_size - t.rows.context[i] - t.lookahead,
        )
    if tokens <= 0 and not t.rows.remote[i]:
        return NO_ROOM
    need = whole if t.rows.remote[i] else _chunk_blocks(t, i, tokens)
    at[FREE] -= need
    at[RESERVED] -= 0 if t.rows.remote[i] else need
    if tokens > 1:
        at[ATTENDED] += tokens * (t.rows.context[i] + tokens / 2)
    else:
        at[KV] += t.rows.context[i] * tokens
    return _place(t, at, i, tokens)


@compiled
def _add_prompts(t: Table, at: Floats, prompts: Ints, limit_s: float, whole_s: float) -> bool:
    full = blocked = added = False
    for i in prompts:
        if (full and not t.rows.remote[i]) or (blocked and not t.rows.running[i]):
            continue
        whole = not added and _fitting(t, at, i, whole_s) >= t.rows.todo[i]
        got = _prompt(t, at, i, whole_s if whole else limit_s, t.max_tokens)
        full = full or got == NO_TIME
        blocked = blocked or got == NO_ROOM
        if got == PLACE and not t.rows.remote[i]:
            added = True
            if t.rows.granted[i] == t.rows.todo[i]:
                now = _predicted(t, at[TOKENS], at[SEQS], at[KV], at[ATTENDED], at[DRAFTS])
                limit_s = max(min(limit_s, _distance(t, i)), now)
    return added


@compiled
def _add_spare(t: Table, at: Floats, spare: Ints, limit_s: float, most: float, drafted: bool) -> int:
    got_tokens, full, blocked = 0, most <= 0, False
    for i in spare:
        if t.rows.granted[i] >= 0 or (full and not t.rows.remote[i]) or (blocked and not t.rows.running[i]):
            continue
        if not t.rows.decoding[i]:
            got = _prompt(t, at, i, limit_s, int(most - got_tokens))
        elif _with_decode(t, at, i, drafted) <= limit_s:
            got = _decode(t, at, i, drafted)
        else:
            got = NO_TIME
        full = full or (got == NO_TIME and not t.rows.decoding[i])
        blocked = blocked or got == NO_ROOM
        if got == PLACE:
            got_tokens += t.rows.granted[i]
        full = full or got_tokens >= most
    return got_tokens


@compiled
def _with_decode(t: Table, at: Floats, i: int, drafted: bool) -> float:
    drafts = t.rows.drafts[i] if drafted else 0
    kv, longest = at[KV] + t.rows.context[i], max(at[DRAFTS], drafts)
    return _predicted(t, at[TOKENS] + 1 + drafts, at[SEQS] + 1, kv, at[ATTENDED], longest)


@compiled
def _add_anything(t: Table, at: Floats, decoders: Ints, prompts: Ints, spare: Ints) -> None:
    for group in (decoders, prompts, spare):
        for i in group:
            got = _decode(t, at, i, False) if t.rows.decoding[i] else _prompt(t, at, i, inf, LEAST)
            if got == PLACE and not t.rows.remote[i]:
                return


@compiled
def _place(t: Table, at: Floats, i: int, tokens: int) -> int:
    t.rows.granted[i] = tokens
    t.rows.order[int(at[PLACED])] = i
    at[PLACED] += 1
    at[TOKENS] += tokens
    at[SEQS] += tokens > 0
    return PLACE


@compiled
def _make_room(t: Table, at: Floats, i: int, need: int) -> bool:
    free, running_now = int(at[FREE]), int(at[RUNNING])
    wanted = 0 if t.rows.running[i] else 1
    if free < need or running_now + wanted > t.max_seqs:
        chosen = 0
        for v in t.victims:
            if free >= need and running_now + wanted <= t.max_seqs:
                break
            if t.rows.running[v] and _may_preempt(t, i, v):
                t.rows.preempted[int(at[EVICTED]) + chosen] = v
                chosen += 1
                free += _blocks(t, t.rows.context[v])
                running_now -= 1
                if not t.rows.running[i] and not t.rows.decoding[v]:
                    need -= _chunk_blocks(t, v, t.rows.todo[v])
        if free < need or (wanted and running_now + wanted > t.max_seqs):
            return False
        for _ in range(chosen):
            v = t.rows.preempted[int(at[EVICTED])]
            at[EVICTED] += 1
            t.rows.is_preempted[v] = True
            if not t.rows.decoding[v]:
                at[RESERVED] -= _chunk_blocks(t, v, t.rows.todo[v])
        at[FREE], at[RUNNING] = free, running_now
    return True


@compiled
def _may_preempt(t: Table, i: int, v: int) -> bool:
    rows = t.rows
    if v == i or rows.granted[v] >= 0 or rows.is_preempted[v]:
        return False
    if rows.promised[i] != rows.promised[v]:
        return bool(rows.promised[i])
    later = rows.arrival[v] > rows.arrival[i] or (rows.arrival[v] == rows.arrival[i] and v > i)
    return bool(rows.running[i] and later)
