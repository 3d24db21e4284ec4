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
        return self._fill(view, rows, todo, order, length_s, lengths)

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

    def _fill(
        self, view: View, rows: np.ndarray, todo: Ints, order: Ints, length_s: float, lengths: dict[float, int]
    ) -> Formed:
        free, size = view.free_blocks, view.preset.block_size
        left = min(view.max_tokens, _tokens_within(view, length_s, max(lengths.values(), default=0)))
        seats = view.preset.max_seqs - int(rows["running"].sum())
        computed, blocks, running = rows["computed"].tolist(), rows["blocks"].tolist(), rows["running"].tolist()
        todo_of, remote, pace = todo.tolist(), rows["remote"].tolist(), rows["pace"].tolist()
        promised = rows["promised"].tolist()
        left_of = (rows["output"] - rows["count"] - 1).tolist()
        victims = [k for k in reversed(order.tolist()) if running[k] and not remote[k] and not promised[k]]
        taken, tokens, drafts, lost = [], [], [], list[int]()
        for k in order.tolist():
            if k in lost or (running[k] and remote[k]):
                continue
            is_decode = running[k] and todo_of[k] == 1
            n_drafts = min(lengths.get(pace[k], 0), left_of[k]) if is_decode and promised[k] else 0
            n = 0 if remote[k] else 1 + n_drafts if is_decode else min(todo_of[k], left)
            if not running[k] and seats <= 0:
                continue
            if not remote[k] and (n <= 0 or (not promised[k] and left < n)):
                continue
            need = -(-(todo_of[k] - 1) // size) if remote[k] else max(0, -(-(computed[k] + n) // size) - blocks[k])
            while need > free and promised[k] and victims:
                victim = victims.pop(0)
                if victim not in taken:
                    lost.append(victim)
                    free += blocks[victim]
            if need > free and is_decode and promised[k]:
                later = [v for v in reversed(order.tolist()) if running[v] and not remote[v] and v not in lost]
                later = [v for v in later if v != k and v not in taken]
                while need > free and later:
                    lost.append(later.pop(0))
                    free += blocks[lost[-1]]
            if need > free:
                continue
            free -= need
            left -= n
            seats -= not running[k]
            taken.append(k)
            tokens.append(n)
            drafts.append(n_drafts)
        chosen = view.members[np.array(taken, np.int64)] if taken else NONE
        return _formed(view, chosen, tokens, drafts, view.members[np.array(lost, np.int64)] if lost else NONE)


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
