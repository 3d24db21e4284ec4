"""The simulated engine's scheduler: continuous batching over bounded KV blocks, without time and I/O."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from common import batching
from common.engine.interface import Chunk, Job
from common.engine.promises import Promise
from common.latency_model import Batch


class Phase(Enum):
    """Where a sequence is."""

    WAITING = auto()
    PULLING = auto()
    RUNNING = auto()
    GONE = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """A job in the engine: all its tokens, and how many of them have their KV computed."""

    job: Job
    tokens: list[int]
    computed: int = 0
    blocks: int = 0
    phase: Phase = Phase.WAITING
    pull_first: bool = False
    promise: Promise | None = None
    notes: dict[str, float] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        """Output tokens so far, those included that existed before the job."""
        return self.tokens[len(self.job.prompt) :]

    @property
    def todo(self) -> int:
        """Tokens whose KV is not computed; 1 for a plain decode."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Grant:
    """``tokens`` of a sequence computed in one iteration."""

    sequence: Sequence
    tokens: int


class Core:
    """Sequences and their blocks. By itself first come, first served, and the youngest preempted when KV runs out.

    ``free_blocks`` plus the blocks of all sequences plus those taken by :meth:`keep` is always ``total_blocks``.
    """

    def __init__(self, total_blocks: int, block_size: int, max_seqs: int, max_batch_tokens: int) -> None:
        self.total_blocks = total_blocks
        self.free_blocks = total_blocks
        self.block_size = block_size
        self.max_seqs = max_seqs
        self.max_batch_tokens = max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence in whatever phase and free its blocks; removing twice does nothing."""
        if sequence.phase is Phase.GONE:
            return
        (self.waiting if sequence.phase is Phase.WAITING else self.running).remove(sequence)
        self._free(sequence)
        sequence.phase = Phase.GONE

    def keep(self, sequence: Sequence) -> int:
        """Forget a sequence but leave its blocks taken; they are given back by :meth:`give_back`."""
        blocks, sequence.blocks = sequence.blocks, 0
        self.remove(sequence)
        return blocks

    def give_back(self, blocks: int) -> None:
        """Free blocks that :meth:`keep` returned."""
        self.free_blocks += blocks

    def pull_starts(self) -> list[Sequence]:
        """Admit from the head of the queue those that pull their KV; their blocks are allocated at once."""
        started = []
        while self.waiting and self.waiting[0].pull_first and len(self.running) < self.max_seqs:
            sequence = self.waiting[0]
            if not self._start_pull(sequence):
                break
            started.append(sequence)
        return started

    def _start_pull(self, sequence: Sequence) -> bool:
        if not self._allocate(sequence, sequence.todo - 1):
            return False
        self.waiting.remove(sequence)
        sequence.phase, sequence.pull_first = Phase.PULLING, False
        self.running.append(sequence)
        return True

    def plan(self) -> list[Grant]:
        """The next iteration's batch; its blocks are allocated. Empty if nothing can run."""
        grants: list[Grant] = []
        budget = self.max_batch_tokens
        for sequence in [s for s in self.running if s.phase is Phase.RUNNING]:
            tokens = min(sequence.todo, budget)
            if sequence.phase is Phase.RUNNING and tokens and self._make_room(sequence, tokens, grants):
                grants.append(Grant(sequence, tokens))
                budget -= tokens
        while self.waiting and budget and len(self.running) < self.max_seqs:
            sequence = self.waiting[0]
            tokens = min(sequence.todo, budget)
            if sequence.pull_first or not self._allocate(sequence, tokens):
                break
            self.waiting.popleft()
            sequence.phase = Phase.RUNNING
            self.running.append(sequence)
            grants.append(Grant(sequence, tokens))
            budget -= tokens
        return grants

    def carry_out(self, batch: batching.Batch, named: Mapping[str, Sequence]) -> tuple[list[Grant], list[Sequence]]:
        """Allocate for a batch that was formed elsewhere; returns what is computed, and what begins to pull its KV."""
        for name in batch.preempt:
            self._preempt(named[name])
        grants: list[Grant] = []
        pulls: list[Sequence] = []
        for name, tokens in batch.tokens.items():
            sequence = named[name]
            if sequence.pull_first:
                if self._start_pull(sequence):
                    pulls.append(sequence)
            elif self._allocate(sequence, tokens):
                if sequence.phase is Phase.WAITING:
                    self.waiting.remove(sequence)
                    sequence.phase = Phase.RUNNING
                    self.running.append(sequence)
                grants.append(Grant(sequence, tokens))
        return grants, pulls

    def apply(self, grants: list[Grant], now_s: float = 0.0) -> list[Sequence]:
        """Count a batch as computed at ``now_s``; returns the sequences that are due a token."""
        alive = [g for g in grants if g.sequence.phase is Phase.RUNNING]
        for grant in alive:
            sequence = grant.sequence
            is_chunk = sequence.computed < len(sequence.job.prompt) + len(sequence.job.generated)
            sequence.computed += grant.tokens
            if is_chunk:
                sequence.chunks.append(Chunk(grant.tokens, sequence.computed, now_s))
        return [g.sequence for g in alive if g.sequence.todo == 0]

    def _make_room(self, sequence: Sequence, tokens: int, grants: list[Grant]) -> bool:
        while not self._allocate(sequence, tokens):
            granted = {id(grant.sequence) for grant in grants}
            victims = [s for s in self.running if s.phase is Phase.RUNNING and id(s) not in granted]
            victim = victims[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.running.remove(victim)
        self._free(victim)
        victim.computed, victim.phase = 0, Phase.WAITING
        self.waiting.appendleft(victim)

    def _allocate(self, sequence: Sequence, tokens: int) -> bool:
        need = -(-(sequence.computed + tokens) // self.block_size) - sequence.blocks
        if need > self.free_blocks:
            return False
        if need > 0:
            self.free_blocks -= need
            sequence.blocks += need
        return True

    def _free(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.blocks
        sequence.blocks = 0


def batch_of(grants: list[Grant]) -> Batch:
    """What the latency model is asked about a batch; call it before :meth:`Core.apply`."""
    decodes = [g for g in grants if g.tokens == 1]
    chunks = [g for g in grants if g.tokens > 1]
    return Batch(
        tokens=sum(g.tokens for g in grants),
        seqs=len(grants),
        kv_tokens=sum(g.sequence.computed for g in decodes),
        attended=sum(g.tokens * (g.sequence.computed + g.tokens / 2) for g in chunks),
    )
