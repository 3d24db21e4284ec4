"""The paper's batch former (SLOs-Serve, section 4.2): one batch length, from the tightest TPOT on the replica.

Every decode whose next token is due before the batch after this one would end takes part, the others skip; what is left
of the batch goes to prompts by deadline, then to best effort. With a draft model, speculation lengths by TPOT maximise
``(t2b(T) - sum n_l*sl_l) / T`` with ``T = min_l TPOT_l*Acc(sl_l)``.
"""

from itertools import product

import numpy as np

from bench.simulator.book import Floats, Ints, cost
from bench.simulator.formers.interface import NONE, Formed, View
from common.latency_model import Batch

LONGEST = 10
IDLE_S = 0.15
"""Length of a batch where nothing promised decodes."""


class PaperFormer:
    """One per engine. ``acceptance`` is what the draft model is known to reach."""

    def __init__(self, reply_s: float, acceptance: float, speculate: bool = True, longest: int = LONGEST) -> None:
        self._reply_s = reply_s
        self._acceptance = acceptance
        self._longest = longest if speculate else 0
        self._lengths: dict[tuple[tuple[float, int], ...], tuple[float, dict[float, int]]] = {}

    def form(self, view: View, now_s: float) -> Formed:
        """Decodes, then prompts, then best effort, within one length."""
        rows = view.book.rows[view.members]
        todo = rows["prompt"] + rows["count"] - rows["computed"]
        decoding = rows["running"] & ~rows["remote"] & (todo == 1)
        promised = decoding & rows["promised"]
        length_s, lengths = self._plan(view, rows["pace"][promised])
        due = rows["due"] - self._reply_s
        must = promised & (due < now_s + 2 * length_s)
        prompts = ~decoding & rows["promised"]
        order = np.concatenate(
            (
                _sorted(must, due),
                _sorted(prompts, due),
                _sorted(promised & ~must, due),
                _sorted(~rows["promised"], rows["arrival"]),
            )
        )
        filling = _Filling(
            view, rows, todo, order, lengths, _tokens_within(view, length_s, max((0, *lengths.values())))
        )
        for k in order.tolist():
            filling.offer(k, bool(must[k]))
        return filling.formed()

    def verified(self, tier: int, drafted: int, accepted: int) -> None:
        """It knows its acceptance."""

    def _plan(self, view: View, paces: Floats) -> tuple[float, dict[float, int]]:
        """Batch length, and drafts by TPOT."""
        if not len(paces):
            return IDLE_S, {}
        tpots, counts = np.unique(paces, return_counts=True)
        key = tuple(zip(tpots.tolist(), counts.tolist(), strict=True))
        if key not in self._lengths:
            self._lengths[key] = self._choose(view, key)
        return self._lengths[key]

    def _choose(self, view: View, key: tuple[tuple[float, int], ...]) -> tuple[float, dict[float, int]]:
        most = self._longest if view.preset.drafts else 0
        best, best_rate = (key[0][0], dict.fromkeys((tpot for tpot, _ in key), 0)), -np.inf
        options = range(most + 1) if len(key) == 1 else range(0, most + 1, 1 if len(key) == 2 else 2)
        for drafts in product(options, repeat=len(key)):
            length_s = min(tpot * self._tokens(n) for (tpot, _), n in zip(key, drafts, strict=True))
            room = _tokens_within(view, length_s, max(drafts))
            rate = (room - sum(count * (n + 1) for (_, count), n in zip(key, drafts, strict=True))) / length_s
            if rate > best_rate:
                best_rate = rate
                best = (length_s, {tpot: n for (tpot, _), n in zip(key, drafts, strict=True)})
        return best

    def _tokens(self, drafts: int) -> float:
        a = self._acceptance
        return (1 - a ** (drafts + 1)) / (1 - a)


class _Filling:
    """A batch in the making; members are named by their position."""

    def __init__(
        self, view: View, rows: np.ndarray, todo: Ints, order: Ints, lengths: dict[float, int], most_tokens: int
    ) -> None:
        self._view = view
        self._lengths = lengths
        self._free = view.free_blocks
        self._tokens_left = min(view.max_tokens, most_tokens)
        self._seats = view.preset.max_seqs - int(rows["running"].sum())
        self._computed: list[int] = rows["computed"].tolist()
        self._blocks: list[int] = rows["blocks"].tolist()
        self._running, self._remote = rows["running"].tolist(), rows["remote"].tolist()
        self._promised, self._pace = rows["promised"].tolist(), rows["pace"].tolist()
        self._todo: list[int] = todo.tolist()
        self._output_left = (rows["output"] - rows["count"]).tolist()
        holders = [k for k in reversed(order.tolist()) if self._running[k] and not self._remote[k]]
        self._loose = [k for k in holders if not self._promised[k]]
        self._bound = [k for k in holders if self._promised[k]]
        self._taken: dict[int, tuple[int, int]] = {}
        self._lost: list[int] = []

    def offer(self, k: int, due: bool) -> None:
        """Take it if tokens, seats and KV allow; who is ``due`` may take more tokens than are left."""
        if k in self._lost or (not self._running[k] and self._seats <= 0):
            return
        decodes = self._running[k] and self._todo[k] == 1
        drafts = 0
        if decodes and self._promised[k]:
            drafts = min(self._lengths.get(self._pace[k], 0), self._output_left[k] - 1)
        tokens = 1 + drafts if decodes else min(self._todo[k], self._tokens_left)
        if self._remote[k]:
            tokens = 0
        elif tokens <= 0 or (tokens > self._tokens_left and not due):
            return
        if not self._make_room(k, self._blocks_of(k, tokens), decodes):
            return
        self._free -= self._blocks_of(k, tokens)
        self._tokens_left -= tokens
        self._seats -= not self._running[k]
        self._taken[k] = (tokens, drafts)

    def _blocks_of(self, k: int, tokens: int) -> int:
        size = self._view.preset.block_size
        if self._remote[k]:
            return -(-(self._todo[k] - 1) // size)
        return max(0, -(-(self._computed[k] + tokens) // size) - self._blocks[k])

    def _make_room(self, k: int, need: int, decodes: bool) -> bool:
        """Best effort gives way to what is promised, last in first out; for promised decodes later promises do too."""
        for victims, may in (
            (self._loose, self._promised[k]),
            (self._bound, self._promised[k] and decodes),
            (self._loose, decodes),
        ):
            while need > self._free and may and victims:
                victim = victims[0]
                if victim == k:
                    break
                victims.pop(0)
                if victim not in self._taken:
                    self._lost.append(victim)
                    self._free += self._blocks[victim]
        return need <= self._free

    def formed(self) -> Formed:
        """The batch."""
        members = self._view.members
        rows = members[np.array(list(self._taken), np.int64)] if self._taken else NONE
        lost = members[np.array(self._lost, np.int64)] if self._lost else NONE
        return _formed(
            self._view, rows, [n for n, _ in self._taken.values()], [d for _, d in self._taken.values()], lost
        )


def _formed(view: View, rows: Ints, tokens: list[int], drafts: list[int], preempt: Ints) -> Formed:
    n, d = np.array(tokens, np.int64), np.array(drafts, np.int64)
    total, kv, attended, longest = cost(view.book.rows, rows, n, d)
    seconds = view.preset.latency.seconds(Batch(total, len(rows), kv, attended, longest))
    return Formed(rows, n, d, preempt, seconds)


def _tokens_within(view: View, seconds: float, draft_steps: int) -> int:
    latency = view.preset.latency
    kv = int(view.book.rows["computed"][view.members].sum())
    room_s = seconds - draft_steps * max(piece.k_draft for piece in latency.pieces)
    return latency.tokens_within(room_s, len(view.members), kv)


def _sorted(chosen: np.ndarray, key: Floats) -> Ints:
    found = np.flatnonzero(chosen)
    ordered: Ints = found[np.argsort(key[found], kind="stable")]
    return ordered
