"""vLLM's schedulers as they are: V1 (decodes first, chunked prefill, first come first served) and V0 (prefill first).

Both preempt the request that came last when KV runs out, which recomputes it later. Neither knows a deadline.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

from typing import Any

import numpy as np

from admission.jit import compiled
from bench.simulator.book import Ints, cost
from bench.simulator.formers.interface import Formed, View
from common.latency_model import Batch

WATERMARK = 0.01
"""Share of blocks that V0 leaves free when it lets a prompt in."""


class StockFormer:
    """vLLM V1 with ``budget`` tokens a batch and ``drafts`` drafted tokens for each decode.

    With ``decodes_first``, as Sarathi-Serve, all decodes come before any chunk; V1 goes through them in order.
    """

    def __init__(self, budget: int, drafts: int = 0, decodes_first: bool = False) -> None:
        self._budget = budget
        self._drafts = drafts
        self._decodes_first = decodes_first

    def form(self, view: View, now_s: float) -> Formed:  # noqa: ARG002 (it knows no time)
        """Running requests, then waiting ones, until the budget is used up."""
        order = _by_rank(view)
        drafts = self._drafts if view.preset.drafts else 0
        out = _columns(len(order))
        count, lost = _chunked(
            view.book.rows, order, view.free_blocks, view.preset.block_size, self._budget, view.preset.max_seqs,
            drafts, self._decodes_first, *out,
        )  # fmt: skip
        return _formed(view, count, lost, *out)

    def verified(self, tier: int, drafted: int, accepted: int) -> None:
        """It learns nothing."""


class PrefillFirstFormer:
    """vLLM V0: whole prompts of at most ``budget`` tokens while any waits and fits, decodes otherwise."""

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def form(self, view: View, now_s: float) -> Formed:  # noqa: ARG002 (it knows no time)
        """Prompts only, or decodes only."""
        order = _by_rank(view)
        out = _columns(len(order))
        spare = int(WATERMARK * view.preset.blocks)
        count, lost = _prompts_first(
            view.book.rows, order, view.free_blocks, view.preset.block_size, self._budget, view.preset.max_seqs,
            spare, out[0], out[1], out[3],
        )  # fmt: skip
        return _formed(view, count, lost, *out)

    def verified(self, tier: int, drafted: int, accepted: int) -> None:
        """It learns nothing."""


def _by_rank(view: View) -> Ints:
    ordered: Ints = view.members[np.argsort(view.book.rows["rank"][view.members], kind="stable")]
    return ordered


def _columns(size: int) -> tuple[Ints, Ints, Ints, Ints]:
    return np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.int64)


def _formed(view: View, count: int, lost: int, rows: Ints, tokens: Ints, drafts: Ints, preempt: Ints) -> Formed:
    rows, tokens, drafts = rows[:count], tokens[:count], drafts[:count]
    total, kv, attended, longest = cost(view.book.rows, rows, tokens, drafts)
    seconds = view.preset.latency.seconds(Batch(total, count, kv, attended, longest))
    return Formed(rows, tokens, drafts, preempt[:lost], seconds)


@compiled
def _more_blocks(rows: Any, i: int, tokens: int, block_size: int) -> int:
    return max(0, -(-(rows.computed[i] + tokens) // block_size) - rows.blocks[i])


@compiled
def _todo(rows: Any, i: int) -> int:
    return rows.prompt[i] + rows.count[i] - rows.computed[i]


@compiled
def _make_room(
    rows: Any, order: Ints, at: int, free: int, need: int, gone: Any, out_preempt: Ints, lost: int
) -> tuple[int, int]:
    """Preempt from the end of the running until ``need`` blocks are free or the request itself had to go."""
    last = order.shape[0] - 1
    while free < need:
        while last >= 0 and (gone[last] or not rows.running[order[last]] or rows.remote[order[last]]):
            last -= 1
        if last < at:
            break
        gone[last] = True
        free += rows.blocks[order[last]]
        out_preempt[lost] = order[last]
        lost += 1
        if last == at:
            break
    return free, lost


@compiled
def _chunked(
    rows: Any, order: Ints, free: int, block_size: int, budget: int, max_seqs: int, most_drafts: int,
    decodes_first: bool, out_rows: Ints, out_tokens: Ints, out_drafts: Ints, out_preempt: Ints,
) -> tuple[int, int]:  # fmt: skip
    count = lost = running = 0
    gone = np.zeros(order.shape[0], np.bool_)
    for i in order:
        running += rows.running[i]
    for wanted in range(2 if decodes_first else 1):
        for at in range(order.shape[0]):
            i = order[at]
            todo = _todo(rows, i)
            if budget <= 0 or gone[at] or not rows.running[i] or rows.remote[i]:
                continue
            if decodes_first and (todo == 1) != (wanted == 0):
                continue
            drafts = max(0, min(most_drafts, rows.output[i] - rows.count[i] - 1)) if todo == 1 else 0
            tokens = min(todo + drafts, budget)
            drafts = min(drafts, max(0, tokens - 1)) if todo == 1 else 0
            need = _more_blocks(rows, i, tokens, block_size)
            free, lost = _make_room(rows, order, at, free, need, gone, out_preempt, lost)
            if gone[at]:
                break
            free -= need
            budget -= tokens
            out_rows[count], out_tokens[count], out_drafts[count] = i, tokens, drafts
            count += 1
    if lost:
        return _without(gone, order, out_rows, out_tokens, out_drafts, count), lost
    for i in order:
        if rows.running[i]:
            continue
        if budget <= 0 or running >= max_seqs:
            break
        tokens = 0 if rows.remote[i] else min(_todo(rows, i), budget)
        need = -(-(_todo(rows, i) - 1) // block_size) if rows.remote[i] else _more_blocks(rows, i, tokens, block_size)
        if need > free:
            break
        free -= need
        budget -= tokens
        running += 1
        out_rows[count], out_tokens[count] = i, tokens
        count += 1
    return count, lost


@compiled
def _without(gone: Any, order: Ints, out_rows: Ints, out_tokens: Ints, out_drafts: Ints, count: int) -> int:
    """Leave out of the batch what was preempted after it had been chosen (only where decodes come first)."""
    kept = 0
    for k in range(count):
        lost = False
        for at in range(order.shape[0]):
            lost = lost or (gone[at] and order[at] == out_rows[k])
        if not lost:
            out_rows[kept], out_tokens[kept], out_drafts[kept] = out_rows[k], out_tokens[k], out_drafts[k]
            kept += 1
    return kept


@compiled
def _prompts_first(
    rows: Any, order: Ints, free: int, block_size: int, budget: int, max_seqs: int, spare: int, out_rows: Ints,
    out_tokens: Ints, out_preempt: Ints,
) -> tuple[int, int]:  # fmt: skip
    count = lost = running = 0
    for i in order:
        running += rows.running[i]
    for i in order:
        if rows.running[i] or running >= max_seqs:
            continue
        tokens = 0 if rows.remote[i] else _todo(rows, i)
        need = -(-(_todo(rows, i) - 1) // block_size) if rows.remote[i] else _more_blocks(rows, i, tokens, block_size)
        if need > free - spare or (tokens > budget and count > 0):
            break
        free -= need
        budget -= tokens
        running += 1
        out_rows[count], out_tokens[count] = i, tokens
        count += 1
    prompts = 0
    for k in range(count):
        prompts += out_tokens[k]
    if prompts:
        return count, 0
    gone = np.zeros(order.shape[0], np.bool_)
    let_in = count
    for at in range(order.shape[0]):
        i = order[at]
        if gone[at] or not rows.running[i] or rows.remote[i]:
            continue
        need = _more_blocks(rows, i, 1, block_size)
        free, lost = _make_room(rows, order, at, free, need, gone, out_preempt, lost)
        if gone[at]:
            break
        free -= need
        out_rows[count], out_tokens[count] = i, 1
        count += 1
    return (count, lost) if count > let_in or not lost else (let_in, lost)
