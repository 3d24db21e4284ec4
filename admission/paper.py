"""The paper's planning of one replica: prefill budgets PB*, its dynamic program, and speculation lengths.

SLOs-Serve (arXiv 2504.08784), section 3.2 and appendix: ``DP[i, m, pb, n]`` is the best value of the first i requests
in order of prefill deadline, with memory m, prefill budget pb left at the last accepted one's deadline, and n accepted
by decode tier. States that are worse in value, memory and budget than another of the same n are dropped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from common.latency_model import Batch, LatencyModel

MOST_STATES = 256
"""States kept at each step; beyond it those of least value go."""

MOST_DRAFTS = 10


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A request to select: when its prompt is due from now, what it takes, and what it is worth."""

    due_s: float
    work_tokens: int
    memory_tokens: int
    tpot_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Replica:
    """What a replica has: ``decoders`` counts running ones by TPOT.

    ``shares_batches`` is False where decodes run on another worker, whose model is ``decode_latency``: then they take
    nothing of the prompts' time and must only keep up themselves. ``acceptance`` is that of drafts, 0 without any.
    """

    latency: LatencyModel
    max_batch_tokens: int
    memory_tokens: float
    decoders: Mapping[float, int]
    shares_batches: bool
    backlog_tokens: float
    seats: int
    context_tokens: int
    decode_latency: LatencyModel
    acceptance: float = 0.0

    def with_one(self, tpot_s: float, prompt_tokens: int, memory_tokens: int) -> "Replica":
        """The same with one more request, of best effort if ``tpot_s`` is infinite."""
        decoders = dict(self.decoders)
        backlog = self.backlog_tokens
        if tpot_s < math.inf:
            decoders[tpot_s] = decoders.get(tpot_s, 0) + 1
            backlog += prompt_tokens
        return replace(
            self,
            decoders=decoders,
            memory_tokens=self.memory_tokens - memory_tokens,
            seats=self.seats - 1,
            backlog_tokens=backlog,
            context_tokens=self.context_tokens + prompt_tokens,
        )


def prefill_budget(replica: Replica, seconds: float, decoders: Mapping[float, int]) -> float:
    """PB*: most prompt tokens in ``seconds`` while these decoders, by TPOT, keep theirs; negative if they can't.

    Batches end at the earliest next token deadline; a looser tier takes part in as many as it needs.
    """
    tiers = {tpot_s: count for tpot_s, count in decoders.items() if count} if replica.shares_batches else {}
    count = sum(tiers.values())
    context = replica.context_tokens if replica.shares_batches else 0
    length_s = min(tiers, default=math.inf)
    whole = replica.latency.seconds(_batch(replica.max_batch_tokens, count, context))
    length_s = min(length_s, whole)
    batches = math.floor(seconds / length_s)
    held = min(replica.max_batch_tokens, replica.latency.tokens_within(length_s, count, context))
    rest = min(replica.max_batch_tokens, replica.latency.tokens_within(seconds - batches * length_s, count, context))
    due = sum(count * math.floor(seconds / tpot_s) for tpot_s, count in tiers.items())
    plain = batches * held + rest - due
    return max(plain, _with_drafts(replica, seconds, tiers, context)) if tiers and replica.acceptance > 0 else plain


def _with_drafts(replica: Replica, seconds: float, tiers: Mapping[float, int], context: int) -> float:
    """PB* where decoders draft: batches of ``T = min TPOT*Acc(sl)``, in which each takes ``sl`` tokens."""
    length_s, drafting_s, used = _speculated(tuple(sorted(tiers.items())), replica.latency, replica.acceptance)
    count = sum(tiers.values())

    def room(of_s: float) -> float:
        return min(replica.max_batch_tokens, replica.latency.tokens_within(of_s - drafting_s, count, context)) - used

    batches = math.floor(seconds / length_s)
    return batches * room(length_s) + max(0.0, room(seconds - batches * length_s))


@lru_cache(maxsize=4096)
def _speculated(
    tiers: tuple[tuple[float, int], ...], latency: LatencyModel, acceptance: float
) -> tuple[float, float, float]:
    """Length of a batch, the part of it that draft steps take, and the tokens that decoders take."""
    lengths = speculation([(str(tpot_s), tpot_s, count) for tpot_s, count in tiers], latency, acceptance)
    length_s = min(tpot_s * accepted_tokens(lengths[str(tpot_s)], acceptance) for tpot_s, _ in tiers)
    drafting_s = max(piece.k_draft for piece in latency.pieces) * (max(lengths.values()) - 1)
    return length_s, drafting_s, sum(count * lengths[str(tpot_s)] for tpot_s, count in tiers)


def keeps_up(replica: Replica, decoders: Mapping[float, int]) -> bool:
    """Whether decoding alone is feasible."""
    tiers = {tpot_s: count for tpot_s, count in decoders.items() if count}
    if not tiers:
        return True
    length_s, count = min(tiers), sum(tiers.values())
    room = replica.decode_latency.tokens_within(length_s, count, replica.context_tokens)
    return sum(length_s / tpot_s * count for tpot_s, count in tiers.items()) <= room


@dataclass(frozen=True, slots=True)
class _State:
    value: float
    memory: float
    budget: float
    due_s: float
    accepted: tuple[int, ...]
    added: tuple[int, ...]


def accept(newcomers: Sequence[Newcomer], replica: Replica) -> set[int]:
    """Indices of the selected, of newcomers in order of their deadlines."""
    tiers = tuple(sorted({one.tpot_s for one in newcomers}))
    states = [_State(0.0, 0.0, -replica.backlog_tokens, 0.0, (), (0,) * len(tiers))]
    for i, one in enumerate(newcomers):
        tier = tiers.index(one.tpot_s)
        grown = [after for state in states if (after := _take(state, i, one, tier, tiers, replica)) is not None]
        states = _prune(states + grown)
    best = max(states, key=lambda state: (state.value, -state.memory))
    return set(best.accepted)


def _take(state: _State, i: int, one: Newcomer, tier: int, tiers: tuple[float, ...], replica: Replica) -> _State | None:
    """The state with request i accepted, None if that is not feasible."""
    added = tuple(count + (at == tier) for at, count in enumerate(state.added))
    before, after = _decoders(replica, tiers, state.added), _decoders(replica, tiers, added)
    if sum(added) > replica.seats or state.memory + one.memory_tokens > replica.memory_tokens:
        return None
    if one.due_s <= 0 or not keeps_up(replica, after):
        return None
    budget = state.budget + prefill_budget(replica, one.due_s - state.due_s, before) - one.work_tokens
    if budget < 0:
        return None
    return _State(
        state.value + one.value,
        state.memory + one.memory_tokens,
        budget,
        one.due_s,
        (*state.accepted, i),
        added,
    )


def _decoders(replica: Replica, tiers: tuple[float, ...], added: tuple[int, ...]) -> dict[float, int]:
    decoders = dict(replica.decoders)
    for tpot_s, count in zip(tiers, added, strict=True):
        decoders[tpot_s] = decoders.get(tpot_s, 0) + count
    return decoders


def _prune(states: list[_State]) -> list[_State]:
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: (-state.value, state.memory, -state.budget)):
        if not any(_dominates(other, state) for other in kept):
            kept.append(state)
        if len(kept) >= MOST_STATES:
            break
    return kept


def _dominates(left: _State, right: _State) -> bool:
    return (
        left.added == right.added
        and left.due_s == right.due_s
        and left.value >= right.value
        and left.memory <= right.memory
        and left.budget >= right.budget
    )


def accepted_tokens(drafts: int, acceptance: float) -> float:
    """``Acc(n)``: tokens expected of a step that verifies n - 1 drafts."""
    return drafts if acceptance >= 1 else (1 - acceptance**drafts) / (1 - acceptance)


def speculation(tiers: Sequence[tuple[str, float, float]], latency: LatencyModel, acceptance: float) -> dict[str, int]:
    """Tokens of a step, 1 for no drafts, by tier of (name, TPOT, decoders): those that leave most prefill tokens/s.

    The shortest time that a tier's drafts allow is the batch's length; every other tier drafts just enough for it.
    """
    gains = [accepted_tokens(n, acceptance) for n in range(1, MOST_DRAFTS + 1)]
    best: dict[str, int] = {}
    most = -math.inf
    for seconds in sorted({tpot_s * gain for _, tpot_s, _ in tiers for gain in gains}):
        lengths = {
            name: next((n for n, gain in enumerate(gains, 1) if tpot_s * gain >= seconds), 0)
            for name, tpot_s, _ in tiers
        }
        if 0 in lengths.values():
            break
        drafting = max(piece.k_draft for piece in latency.pieces) * (max(lengths.values()) - 1)
        used = sum(count * lengths[name] for name, _, count in tiers)
        rate = (latency.tokens_within(seconds - drafting) - used) / seconds
        if rate > most:
            most, best = rate, lengths
    return best


def _batch(tokens: int, seqs: int, context: int) -> Batch:
    return Batch(tokens=tokens, seqs=seqs, kv_tokens=context)
