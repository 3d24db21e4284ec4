"""All requests of one run as columns, and the compiled step that moves them on by one iteration.

A request is in one engine at a time; there ``computed`` tokens have their KV, in ``blocks`` blocks. A decode is a
request with all known tokens computed but the last. Times at which tokens reach the client stand in one flat array.
"""

# Elements of arrays are Any to mypy.
# mypy: disable-error-code="no-any-return"

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from admission.jit import compiled
from bench.workloads.item import Item
from common.slo import CHECK_EVERY

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ROW = np.dtype(
    [
        *((name, np.int64) for name in ("prompt", "output", "thinking", "offset", "tier")),
        *((name, np.int64) for name in ("count", "computed", "blocks", "rank")),
        *((name, np.float64) for name in ("arrival", "ttft", "tpot", "thinking_tpot", "first", "due", "pace")),
        *((name, np.bool_) for name in ("promised", "running", "remote", "fresh")),
    ],
    align=True,
)
"""``thinking_tpot`` is NaN outside of reasoning, ``first`` before the first token; ``due`` and ``pace`` (the TPOT of
the present stage) are of the next token. ``fresh`` is who has made no token since it was dispatched."""

FIRST, FINISHED = 1, 2
"""Flags of :func:`advance`: the first token since dispatch, and the last of all."""


class Book:
    """Columns and token times of all requests, in the order of the workload."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.rows: Any = np.zeros(len(items), ROW)
        for name, values in (
            ("prompt", [item.prompt_tokens for item in items]),
            ("output", [item.output_tokens for item in items]),
            ("thinking", [item.thinking_tokens for item in items]),
        ):
            self.rows[name] = values
        ends = np.cumsum(self.rows["output"])
        self.rows["offset"] = ends - self.rows["output"]
        self.rows["first"] = math.nan
        self.rows["due"] = self.rows["pace"] = self.rows["ttft"] = self.rows["tpot"] = math.inf
        self.rows["thinking_tpot"] = math.nan
        self.times_s: Floats = np.full(int(ends[-1]) if len(items) else 0, math.nan)
        self.names = [f"{i:07d}" for i in range(len(items))]
        self.index = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def token_times_s(self, i: int) -> Floats:
        """When the request's tokens reached the client, so far."""
        start = int(self.rows["offset"][i])
        return self.times_s[start : start + int(self.rows["count"][i])]

    def known(self, i: int) -> int:
        """Tokens of the prompt and those made."""
        return int(self.rows["prompt"][i] + self.rows["count"][i])


@compiled
def look_ahead(rows: Any, i: int) -> None:
    """When the next token is due, see :meth:`common.slo.Objective.token_due_s`."""
    row = rows[i]
    number = row.count + 1
    prefill_due = row.arrival + row.ttft
    if number == 1 or math.isnan(row.first):
        rows.due[i] = prefill_due
    start = max(prefill_due, row.first)
    if math.isnan(row.thinking_tpot):
        rows.pace[i] = row.tpot
        if number > 1:
            rows.due[i] = start + row.tpot * (number - 1)
        return
    ends_thinking = row.count >= row.thinking
    rows.pace[i] = row.tpot if ends_thinking else row.thinking_tpot
    gaps = max(0, (min(number, row.thinking) if ends_thinking else number) - 1)
    if number > 1:
        rows.due[i] = start + row.thinking_tpot * gaps + row.tpot * (number - 1 - gaps)


@compiled
def cost(rows: Any, chosen: Ints, tokens: Ints, drafts: Ints) -> tuple[int, int, float, int]:
    """Tokens, KV read by decodes, attention of chunks and draft steps of a batch."""
    total, kv, attended, longest = 0, 0, 0.0, 0
    for k in range(chosen.shape[0]):
        i, n = chosen[k], tokens[k]
        total += n
        longest = max(longest, drafts[k])
        if n - drafts[k] == 1 and rows.computed[i] == rows.prompt[i] + rows.count[i] - 1:
            kv += rows.computed[i]
        else:
            attended += n * (rows.computed[i] + n / 2)
    return total, kv, attended, longest


@compiled
def allocate(rows: Any, chosen: Ints, tokens: Ints, block_size: int) -> int:
    """Take the blocks that the batch needs; returns how many more that is."""
    more = 0
    for k in range(chosen.shape[0]):
        i = chosen[k]
        need = max(rows.blocks[i], -(-(rows.computed[i] + tokens[k]) // block_size))
        more += need - rows.blocks[i]
        rows.blocks[i] = need
        rows.running[i] = True
    return more


@compiled
def advance(
    rows: Any,
    times: Floats,
    chosen: Ints,
    tokens: Ints,
    drafts: Ints,
    right: Floats,
    acceptance: float,
    block_size: int,
    client_s: float,
    flags: Ints,
    accepted: Ints,
) -> int:
    """The iteration has ended: count its tokens, and give back the blocks of wrong drafts; returns how many.

    ``right`` are uniform draws, one a drafted token. ``accepted`` and ``flags`` are written, by batch position.
    """
    freed, draw = 0, 0
    for k in range(chosen.shape[0]):
        i = chosen[k]
        good = 0
        while good < drafts[k] and right[draw + good] < acceptance:
            good += 1
        draw += drafts[k]
        accepted[k], flags[k] = good, 0
        computed = rows.computed[i] + tokens[k] - drafts[k] + good
        if computed >= rows.prompt[i] + rows.count[i]:
            made = min(1 + good, rows.output[i] - rows.count[i])
            at = rows.offset[i] + rows.count[i]
            times[at : at + made] = client_s
            computed = computed - good - 1 + made
            rows.count[i] += made
            if math.isnan(rows.first[i]):
                rows.first[i] = client_s
            if rows.fresh[i]:
                rows.fresh[i] = False
                flags[k] = FIRST
            if rows.count[i] == rows.output[i]:
                flags[k] |= FINISHED
            look_ahead(rows, i)
        rows.computed[i] = computed
        keep = -(-computed // block_size)
        freed += rows.blocks[i] - keep
        rows.blocks[i] = keep
    return freed


@compiled
def checked_in(count: Ints) -> Ints:
    """How many tokens from now on one is checked against its deadline (1: the next)."""
    return (-(count + 1)) % CHECK_EVERY + 1
