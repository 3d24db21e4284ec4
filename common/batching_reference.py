"""The batch policy written out: slow, readable, and held by property tests to the same results as the compiled one.

A batch is as long as the tightest promised decode allows. All promised decodes take part, except that loose ones
may skip when promised prompts wait and decodes would use much of the batch. Then best effort gets what it is owed,
promised prompts get chunks by deadline, and best effort the rest. Where no deadline is near nobody skips, and batches
are as long as any may be.
"""

from collections.abc import Iterable
from enum import Enum, auto
from math import floor, inf, sqrt

from common.batching import Batch, BatchState, Candidate
from common.batching_table import CREDIT, FAR, HURRY, LATE, LEAST, LOOSE, PACE, SKIP, WHOLE
from common.latency_model import Batch as Work
from common.slo import slack_s


class Got(Enum):
    """What became of a candidate that was offered a place."""

    PLACE = auto()
    NO_TIME = auto()
    NO_ROOM = auto()


def form_batch_reference(state: BatchState, now_s: float) -> Batch:
    """See :func:`common.batching.form_batch`."""
    rows = state.columns.rows()
    batch = Filling(state, rows, now_s)
    decoders = sorted([c for c in rows if c.promised and decoding(c)], key=lambda c: c.due_s)
    prompts = sorted([c for c in rows if c.promised and not decoding(c)], key=lambda c: urgency(c, now_s))
    spare = sorted([c for c in rows if not c.promised], key=lambda c: (not decoding(c), c.arrival_s))

    drafted = batch.decode_s(decoders, drafted=True) <= min((batch.distance_s(c) for c in decoders), default=inf)
    needed_s = batch.decode_s(decoders, drafted)
    promised = any(c.promised for c in rows)
    base_s = needed_s if promised else batch.decode_s([c for c in spare if decoding(c)], drafted=True)
    limit_s, strict_s, whole_s = batch.lengths_s(decoders, needed_s, base_s)
    far = all(batch.distance_s(c) > FAR * whole_s for c in [*decoders, *prompts])
    limit_s = whole_s if far else limit_s
    loose = [] if far else batch.loose(decoders, prompts, needed_s, limit_s)

    for candidate in decoders:
        if candidate not in loose:
            batch.decode(candidate, drafted)
    owed = batch.add_spare(spare, limit_s, floor(state.credit_tokens), drafted=not promised)
    added = batch.add_prompts(prompts, limit_s, whole_s)
    if not added:
        for candidate in loose:
            batch.decode(candidate, drafted)
    free = batch.add_spare(spare, strict_s, state.max_tokens, drafted=not promised)
    if not batch.granted:
        batch.add_anything([*decoders, *prompts, *spare])

    credit = min(CREDIT, max(0.0, state.credit_tokens + state.former.share * batch.tokens - owed - free))
    return Batch(
        tokens=dict(batch.granted),
        drafts={c.id: batch.granted[c.id] - 1 for c in rows if decoding(c) and batch.granted.get(c.id, 0) > 1},
        preempt=tuple(batch.preempted),
        seconds=batch.seconds(),
        credit_tokens=credit if spare else 0.0,
    )


def decoding(c: Candidate) -> bool:
    """Whether one token and its drafts are all that the sequence needs."""
    return c.running and c.todo_tokens <= 1 and not c.remote


def urgency(c: Candidate, now_s: float) -> float:
    """Prompts go by deadline; a missed one counts as a later one, so that it neither drags others down nor starves."""
    return c.due_s if c.due_s >= now_s else c.arrival_s + LATE * (c.due_s - c.arrival_s)


class Filling:
    """A batch in the making, and what is left of tokens, sequences and KV blocks."""

    def __init__(self, state: BatchState, rows: list[Candidate], now_s: float) -> None:
        self.granted: dict[str, int] = {}
        self.preempted: list[str] = []
        self.tokens = self.seqs = self.kv_tokens = self.drafts = 0
        self.attended = 0.0
        self._state, self._now_s = state, now_s
        self._row = {c.id: row for row, c in enumerate(rows)}
        self._victims = sorted([c for c in rows if c.running], key=lambda c: (c.promised, -c.arrival_s))
        self._free = state.free_blocks
        self._running = len(self._victims)
        self._reserved = sum(self._future_blocks(c) for c in rows if c.running and not decoding(c))
        self._headroom = sum(c.promised and c.running for c in rows)

    # time

    def seconds(self) -> float:
        """Predicted duration of the batch."""
        work = Work(self.tokens, self.seqs, self.kv_tokens, self.attended, self.drafts)
        return self._state.latency.seconds(work)

    def with_decode_s(self, c: Candidate, drafted: bool) -> float:
        """Predicted duration with this decode too."""
        drafts = c.drafts if drafted else 0
        tokens, kv_tokens = self.tokens + 1 + drafts, self.kv_tokens + c.context_tokens
        work = Work(tokens, self.seqs + 1, kv_tokens, self.attended, max(self.drafts, drafts))
        return self._state.latency.seconds(work)

    def decode_s(self, decoders: list[Candidate], drafted: bool) -> float:
        """Duration of a batch of these decodes and nothing else."""
        drafts = [c.drafts if drafted else 0 for c in decoders]
        kv_tokens = sum(c.context_tokens for c in decoders)
        work = Work(len(decoders) + sum(drafts), len(decoders), kv_tokens, 0.0, max(drafts, default=0))
        return self._state.latency.seconds(work)

    def distance_s(self, c: Candidate) -> float:
        """From now to when the next token is due, less the margin."""
        return slack_s(c.due_s, self._now_s) * (1 - self._state.former.margin)

    def lengths_s(self, decoders: list[Candidate], needed_s: float, base_s: float) -> tuple[float, float, float]:
        """How long the batch may be for promised prompts, for best effort, and for a first prompt that is not cut.

        Best effort yields to late decodes.

        The margin is given up before prompts are: a decode that can just be in time leaves them nothing. One that
        can't be stretches the limit to a pace at which its next checked token is, or, when that is lost too, at
        which it falls no further behind; and prompts get a share of the batch.
        """
        former, latency = self._state.former, self._state.latency
        limit_s = strict_s = max(former.within(latency), base_s / PACE)
        whole_s = max(former.within(latency, WHOLE), base_s / PACE)
        for c in decoders:
            room_s = max(self.distance_s(c), needed_s)
            strict_s = min(strict_s, room_s)
            if slack_s(c.due_s, self._now_s) < needed_s:
                margin = 1 - self._state.former.margin
                pace_s = (c.due_s + (c.checked_in - 1) * c.tpot_s - self._now_s) / c.checked_in * margin
                room_s = max(pace_s if pace_s >= needed_s else c.tpot_s * margin, needed_s / HURRY)
            limit_s, whole_s = min(limit_s, room_s), min(whole_s, room_s)
        return limit_s, strict_s, whole_s

    def loose(
        self, decoders: list[Candidate], prompts: list[Candidate], needed_s: float, limit_s: float
    ) -> list[Candidate]:
        """Decodes that may skip this batch to make room for prompts: they can be in the next one and be in time."""
        crowded = needed_s - self._state.latency.seconds(Work(0)) > SKIP * limit_s
        if not crowded or all(c.remote for c in prompts):
            return []
        return [c for c in decoders if self.distance_s(c) > max(LOOSE * limit_s, limit_s + LOOSE * needed_s)]

    def fitting(self, c: Candidate, limit_s: float) -> int:
        """The longest chunk of a prompt that keeps the batch within ``limit_s``, attention included."""
        latency = self._state.latency
        others_s = latency.k_seq * (self.seqs + 1) + latency.k_kv * self.kv_tokens + latency.k_attn * self.attended
        most = inf
        for piece in latency.pieces:
            room_s = limit_s - others_s - piece.base - piece.k_draft * self.drafts - piece.k_token * self.tokens
            linear, square = piece.k_token + latency.k_attn * c.context_tokens, latency.k_attn / 2
            if room_s <= 0:
                return 0
            if square * room_s > 1e-12 * linear * linear:
                most = min(most, (sqrt(linear * linear + 4 * square * room_s) - linear) / (2 * square))
            elif linear > 0:
                most = min(most, room_s / linear)
        return int(min(most, self._state.max_tokens))

    # places

    def decode(self, c: Candidate, drafted: bool) -> Got:
        """Give a decode its token and its drafts."""
        tokens = min(1 + (c.drafts if drafted else 0), self._state.max_tokens - self.tokens)
        if tokens <= 0:
            return Got.NO_TIME
        need = self._blocks(c.context_tokens + tokens + self._state.lookahead_tokens) - self._blocks(c.context_tokens)
        if c.id in self.preempted or not self._make_room(c, need):
            return Got.NO_ROOM
        self._free -= need
        self.kv_tokens += c.context_tokens
        self.drafts = max(self.drafts, tokens - 1)
        return self._place(c, tokens)

    def prompt(self, c: Candidate, limit_s: float, most: int) -> Got:
        """Give a prompt a chunk of at most ``most`` tokens, or let it in to pull its KV."""
        if c.id in self.preempted:
            return Got.NO_ROOM
        tokens = 0
        if not c.remote:
            tokens = min(c.todo_tokens, self._state.max_tokens - self.tokens, most, self.fitting(c, limit_s))
            if tokens < min(c.todo_tokens, self._state.max_tokens, 1 if c.due_s < self._now_s else LEAST):
                return Got.NO_TIME
        whole = self._future_blocks(c)
        if not c.running:
            headroom = self._reserved + (0 if c.promised else self._headroom)
            if not self._make_room(c, whole + headroom):
                return Got.NO_ROOM
            self._running += 1
            self._reserved += 0 if c.remote else whole
        elif not self._make_room(c, self._chunk_blocks(c, tokens)):
            tokens = min(tokens, self._tokens_in_free(c))
        if tokens <= 0 and not c.remote:
            return Got.NO_ROOM
        need = whole if c.remote else self._chunk_blocks(c, tokens)
        self._free -= need
        self._reserved -= 0 if c.remote else need
        if tokens > 1:
            self.attended += tokens * (c.context_tokens + tokens / 2)
        else:
            self.kv_tokens += c.context_tokens * tokens
        return self._place(c, tokens)

    def add_prompts(self, prompts: list[Candidate], limit_s: float, whole_s: float) -> bool:
        """Chunks by deadline; one that completes a prompt keeps the batch from ending after its deadline.

        The first prompt is not cut where the batch with all of it lasts no longer than ``whole_s``.
        """
        full = blocked = added = False
        for c in prompts:
            if (full and not c.remote) or (blocked and not c.running):
                continue
            whole = not added and self.fitting(c, whole_s) >= c.todo_tokens
            got = self.prompt(c, whole_s if whole else limit_s, self._state.max_tokens)
            full = full or got is Got.NO_TIME
            blocked = blocked or got is Got.NO_ROOM
            if got is Got.PLACE and not c.remote:
                added = True
                if self.granted[c.id] == c.todo_tokens:
                    limit_s = max(min(limit_s, self.distance_s(c)), self.seconds())
        return added

    def add_spare(self, spare: list[Candidate], limit_s: float, most: int, drafted: bool) -> int:
        """Best effort, decodes first and the oldest first, up to ``most`` tokens; returns how many it got.

        It drafts only where nothing is promised: verifying would take time that promises may need.
        """
        got_tokens, full, blocked = 0, most <= 0, False
        for c in spare:
            if c.id in self.granted or (full and not c.remote) or (blocked and not c.running):
                continue
            if not decoding(c):
                got = self.prompt(c, limit_s, most - got_tokens)
            elif self.with_decode_s(c, drafted) <= limit_s:
                got = self.decode(c, drafted)
            else:
                got = Got.NO_TIME
            full = full or (got is Got.NO_TIME and not decoding(c))
            blocked = blocked or got is Got.NO_ROOM
            got_tokens += self.granted[c.id] if got is Got.PLACE else 0
            full = full or got_tokens >= most
        return got_tokens

    def add_anything(self, candidates: Iterable[Candidate]) -> None:
        """An engine with work never idles: the first that has room, however long it takes."""
        for c in candidates:
            got = self.decode(c, drafted=False) if decoding(c) else self.prompt(c, inf, LEAST)
            if got is Got.PLACE and not c.remote:
                return

    def _place(self, c: Candidate, tokens: int) -> Got:
        self.granted[c.id] = tokens
        self.tokens += tokens
        self.seqs += tokens > 0
        return Got.PLACE

    # KV

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._state.block_size)

    def _chunk_blocks(self, c: Candidate, tokens: int) -> int:
        ahead = self._state.lookahead_tokens
        return self._blocks(c.context_tokens + tokens + ahead) - self._blocks(c.context_tokens)

    def _future_blocks(self, c: Candidate) -> int:
        return self._chunk_blocks(c, c.todo_tokens)

    def _tokens_in_free(self, c: Candidate) -> int:
        blocks = self._blocks(c.context_tokens) + max(0, self._free)
        return blocks * self._state.block_size - c.context_tokens - self._state.lookahead_tokens

    def _make_room(self, c: Candidate, need: int) -> bool:
        """Preempt until ``need`` blocks are free, and a place for ``c`` if it does not run; nobody if that fails."""
        victims, free, running = [], self._free, self._running
        place = 0 if c.running else 1
        for victim in self._victims:
            if free >= need and running + place <= self._state.max_seqs:
                break
            if self._may_preempt(c, victim):
                victims.append(victim)
                free += self._blocks(victim.context_tokens)
                running -= 1
                need -= 0 if c.running or decoding(victim) else self._future_blocks(victim)
        if free < need or (place and running + place > self._state.max_seqs):
            return False
        for victim in victims:
            self.preempted.append(victim.id)
            self._reserved -= 0 if decoding(victim) else self._future_blocks(victim)
        self._free, self._running = free, running
        return True

    def _may_preempt(self, c: Candidate, victim: Candidate) -> bool:
        """A promise goes before best effort; among equals who runs goes before who came later, or all would wait."""
        if victim.id == c.id or victim.id in self.granted or victim.id in self.preempted:
            return False
        if c.promised != victim.promised:
            return c.promised
        return c.running and self._came(victim) > self._came(c)

    def _came(self, c: Candidate) -> tuple[float, int]:
        return c.arrival_s, self._row[c.id]
