"""One simulated engine: batches one after the other, KV blocks, and pulls of KV from other engines.

What is in it is a set of rows of the book. Whoever gives it work is told of first tokens, ends and hand-offs.
"""

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from bench.simulator.agenda import Agenda, Kind
from bench.simulator.book import FINISHED, FIRST, Book, Ints, advance, allocate, cost
from bench.simulator.counters import Counters, Listener
from bench.simulator.formers.interface import NONE, Formed, Former, View
from bench.simulator.noise import Noise
from common.latency_model import Batch
from common.presets import Preset

POLL_S, LONGEST_POLL_S = 0.001, 0.128
"""An engine that has work and plans none asks again after this, as vLLM's core does; here ever more seldom."""

PACE_MEMORY = 0.8


class Engine:
    """See the module. ``max_tokens`` bounds a batch."""

    def __init__(
        self,
        number: int,
        preset: Preset,
        former: Former,
        book: Book,
        agenda: Agenda,
        listener: Listener,
        reply_s: float,
        noise: float,
        seed: int,
    ) -> None:
        self.number = number
        self.preset = preset
        self.book = book
        self.counters = Counters()
        self.used_blocks = 0
        self.alive = True
        self.pace_s = 0.0
        self.draft_tokens = 1.0
        self.busy_until_s = 0.0
        self.told: deque[tuple[float, float]] = deque(maxlen=2)
        self.stepping = False
        self.handing_over: dict[int, Engine] = {}
        self._epoch = 0
        self._former = former
        self._agenda = agenda
        self._listener = listener
        self._reply_s = reply_s
        self._rng = np.random.default_rng([seed, 1000 + number])
        self._noise = Noise(noise, self._rng.spawn(1)[0])
        self._members: list[int] = []
        self._rows: Ints | None = None
        self._hand_offs: dict[int, int] = {}
        self._pulling: dict[int, float] = {}
        self._link_free_s = 0.0
        self._ranks = 0
        self._poll_s = POLL_S
        self._polling = False
        self._starts = 0
        self._spoke = False

    # what is here

    def told_until_s(self, now_s: float) -> float:
        """When the last iteration ends that frames have told of: those of one say how long the next will take."""
        return next((until_s for known_s, until_s in reversed(self.told) if known_s <= now_s), 0.0)

    @property
    def members(self) -> list[int]:
        """Rows that are computed here, those whose KV is being pulled included."""
        return [*self._members, *self._pulling]

    @property
    def size(self) -> int:
        """How many requests are here."""
        return len(self._members) + len(self._pulling)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody has."""
        return self.preset.blocks - self.used_blocks

    def add(self, row: int, producer: "Engine | None" = None) -> None:
        """Take a request, with its KV to be pulled from where it was prefilled."""
        book = self.book.rows
        book["computed"][row] = book["blocks"][row] = 0
        book["running"][row] = False
        book["remote"][row] = producer is not None
        book["fresh"][row] = producer is None
        book["rank"][row] = self._ranks
        self._ranks += 1
        if producer is not None:
            self.handing_over[row] = producer
        self._members.append(row)
        self._rows = None
        self.wake()

    def keep_for_pull(self, row: int, blocks: int) -> None:
        """The KV of a request that goes elsewhere stays until it has been pulled."""
        self._hand_offs[row] = blocks

    def pulled_away(self, row: int) -> None:
        """Somebody has pulled the KV, or nobody will."""
        self.used_blocks -= self._hand_offs.pop(row, 0)
        self.wake()

    def wake(self) -> None:
        """Start an iteration now if the engine is idle."""
        if self.alive and self._members and (self._polling or not self.stepping):
            self._start_at(self._agenda.now_s)

    def die(self) -> list[int]:
        """Lose everything; returns the requests that were here."""
        lost = self.members
        for row in lost:
            producer = self.handing_over.pop(row, None)
            if producer is not None:
                producer.pulled_away(row)
        self.alive = self.stepping = self._polling = False
        self._epoch += 1
        self._members, self._rows = [], None
        self._pulling.clear()
        self._hand_offs.clear()
        self.used_blocks = 0
        self.busy_until_s = 0.0
        return lost

    def revive(self) -> None:
        """An empty replacement is up."""
        self.alive = True

    # iterations

    def _guarded(self, action: Callable[[float], None]) -> Callable[[float], None]:
        epoch = self._epoch

        def run(now_s: float) -> None:
            if epoch == self._epoch:
                action(now_s)

        return run

    def _rows_now(self) -> Ints:
        if self._rows is None:
            self._rows = np.array(self._members, np.int64)
        return self._rows

    def _start(self, now_s: float) -> None:
        self._polling = False
        if not self._members:
            self.stepping = False
            return
        pulling = np.array([*self._pulling], np.int64)
        view = View(self.book, self._rows_now(), self.free_blocks, self.preset, self.preset.max_batch_tokens, pulling)
        formed = self._former.form(view, now_s)
        self._preempt(formed.preempt)
        formed = self._pull_remote(formed, now_s)
        if not len(formed.rows):
            self._idle(now_s)
            return
        self._poll_s = POLL_S
        rows = self.book.rows
        batch = Batch(int(formed.tokens.sum()), len(formed.rows), *cost(rows, *formed[:3])[1:])
        self.used_blocks += allocate(rows, formed.rows, formed.tokens, self.preset.block_size)
        assert self.used_blocks <= self.preset.blocks, "a batch former gave out more KV than there is"
        seconds = self.preset.latency.seconds(batch) * self._noise.factor()
        self.counters.steps += 1
        self.counters.tokens += batch.tokens
        self.counters.busy_s += seconds
        self.counters.most_blocks = max(self.counters.most_blocks, self.used_blocks)
        self.busy_until_s = now_s + formed.seconds
        if self._spoke:
            self.told.append((now_s + self._reply_s, self.busy_until_s))
        self.pace_s = seconds if not self.pace_s else PACE_MEMORY * self.pace_s + (1 - PACE_MEMORY) * seconds
        self._agenda.at(now_s + seconds, Kind.STEP_END, self._guarded(lambda end_s: self._end(formed, end_s)))

    def _idle(self, now_s: float) -> None:
        """Nothing to compute: wait to be woken, or ask again where something here could be computed."""
        self.stepping = False
        self.busy_until_s = 0.0
        if self._members:
            self.counters.polls += 1
            self._start_at(now_s + self._poll_s, polling=True)
            self._poll_s = min(LONGEST_POLL_S, 2 * self._poll_s)

    def _preempt(self, preempted: Ints) -> None:
        rows = self.book.rows
        for row in preempted.tolist():
            self.used_blocks -= int(rows["blocks"][row])
            rows["blocks"][row] = rows["computed"][row] = 0
            rows["running"][row] = False
            self.counters.preempted += 1

    def _end(self, formed: Formed, now_s: float) -> None:
        self.stepping = False
        count = len(formed.rows)
        flags, accepted = np.zeros(count, np.int64), np.zeros(count, np.int64)
        drafted = int(formed.drafts.sum())
        right = self._rng.random(drafted) if drafted else np.zeros(0)
        made_before = int(self.book.rows["count"][formed.rows].sum())
        self.used_blocks -= advance(
            self.book.rows, self.book.times_s, formed.rows, formed.tokens, formed.drafts, right,
            self.preset.acceptance, self.preset.block_size, now_s + self._reply_s, flags, accepted,
        )  # fmt: skip
        made = int(self.book.rows["count"][formed.rows].sum()) - made_before
        self.counters.emitted += made
        self._spoke = made > 0
        if drafted:
            self._verified(formed, flags, accepted)
            each = 1 + float(accepted.sum()) / np.count_nonzero(formed.drafts)
            self.draft_tokens = PACE_MEMORY * self.draft_tokens + (1 - PACE_MEMORY) * each
        for k in np.flatnonzero(flags).tolist():
            row, flag = int(formed.rows[k]), int(flags[k])
            if flag & FINISHED:
                self.remove(row)
                self._listener.ended(row, now_s)
            elif flag & FIRST:
                self._listener.first_token(row, now_s)
        if not self.stepping:
            self._start_at(now_s)

    def _start_at(self, time_s: float, polling: bool = False) -> None:
        """Plan an iteration then; this takes the place of a poll that was to come."""
        self.stepping, self._polling = True, polling
        self._starts += 1
        number = self._starts

        def start(now_s: float) -> None:
            if number == self._starts:
                self._start(now_s)

        self._agenda.at(time_s, Kind.STEP_START, self._guarded(start))

    def _verified(self, formed: Formed, flags: Ints, accepted: Ints) -> None:
        tiers = self.book.rows["tier"][formed.rows]
        for k in np.flatnonzero(formed.drafts).tolist():
            if not flags[k] & FINISHED:
                self._former.verified(int(tiers[k]), int(formed.drafts[k]), int(accepted[k]))

    def remove(self, row: int, keep_kv: bool = False) -> None:
        """A request leaves; with ``keep_kv`` its blocks stay until they have been pulled."""
        rows = self.book.rows
        blocks = int(rows["blocks"][row])
        if keep_kv:
            self.keep_for_pull(row, blocks)
        else:
            self.used_blocks -= blocks
        rows["blocks"][row] = 0
        rows["running"][row] = False
        self._members.remove(row)
        self._rows = None

    # pulls

    def _pull_remote(self, formed: Formed, now_s: float) -> Formed:
        remote = self.book.rows["remote"][formed.rows]
        if not remote.any():
            return formed
        for row in formed.rows[remote].tolist():
            self._pull(row, now_s)
        kept = ~remote
        return Formed(formed.rows[kept], formed.tokens[kept], formed.drafts[kept], NONE, formed.seconds)

    def _pull(self, row: int, now_s: float) -> None:
        """Transfers are served one after the other at the receiver."""
        rows, producer = self.book.rows, self.handing_over[row]
        self._members.remove(row)
        self._rows = None
        if not producer.alive or row not in producer._hand_offs:
            self._lost_kv(row)
            return
        tokens = self.book.known(row) - 1
        blocks = math.ceil(tokens / self.preset.block_size)
        rows["blocks"][row] = blocks
        rows["running"][row] = True
        self.used_blocks += blocks
        assert self.used_blocks <= self.preset.blocks, "a pull was let in without room"
        seconds = self.preset.transfer_s(tokens)
        self._link_free_s = max(self._link_free_s, now_s) + seconds
        self._pulling[row] = self._link_free_s
        self.counters.pulls += 1
        self.counters.pull_s += self._link_free_s - now_s
        self.counters.most_blocks = max(self.counters.most_blocks, self.used_blocks)
        self._agenda.at(self._link_free_s, Kind.PULLED, self._guarded(lambda _: self._pulled(row, tokens)))

    def _lost_kv(self, row: int) -> None:
        """The producer is gone: compute everything again."""
        rows = self.book.rows
        self.handing_over.pop(row, None)
        self.used_blocks -= int(rows["blocks"][row])
        rows["blocks"][row] = rows["computed"][row] = 0
        rows["running"][row] = rows["remote"][row] = False
        self._members.append(row)
        self._rows = None
        self.wake()

    def _pulled(self, row: int, tokens: int) -> None:
        del self._pulling[row]
        producer = self.handing_over[row]
        if not producer.alive or row not in producer._hand_offs:
            self._lost_kv(row)
            return
        del self.handing_over[row]
        self.book.rows["remote"][row] = False
        self.book.rows["computed"][row] = tokens
        self._members.append(row)
        self._rows = None
        producer.pulled_away(row)
        self.wake()
