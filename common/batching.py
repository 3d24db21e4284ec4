"""The batch former: which sequences an engine's next iteration computes, and how many tokens of each.

``form_batch(state, now) -> Batch`` is pure and the same code in engines and simulators. The policy is written out in
:mod:`common.batching_reference`; :mod:`common.batching_core` is the same compiled, at a tenth of the time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf

import numpy as np

from common import batching_core as core
from common.batching_table import HURRY, LATE, ROW, WHOLE, WORTH, Bools, Floats, Ints, Table
from common.latency_model import LatencyModel, Piece


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sequence in the engine.

    ``todo_tokens`` are known tokens whose KV is missing, 1 for a plain decode; ``context_tokens`` are in KV already.
    ``due_s`` is when its next output token is due, ``checked_in`` how many tokens from now on (1: the next) one is
    checked against its deadline; both say nothing where nothing is ``promised``. ``drafts`` may be verified now.
    A ``remote`` sequence pulls its KV: letting it in costs blocks and no tokens.
    """

    id: str
    todo_tokens: int = 1
    context_tokens: int = 0
    arrival_s: float = 0.0
    due_s: float = inf
    tpot_s: float = inf
    checked_in: int = 1
    drafts: int = 0
    promised: bool = True
    running: bool = True
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """Candidates by column, as an engine can fill them without making an object for each."""

    ids: Sequence[str]
    todo_tokens: Ints
    context_tokens: Ints
    arrival_s: Floats
    due_s: Floats
    tpot_s: Floats
    checked_in: Ints
    drafts: Ints
    promised: Bools
    running: Bools
    remote: Bools

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> "Columns":
        """The same as columns."""
        kinds = {"ids": None, "arrival_s": float, "due_s": float, "tpot_s": float}
        kinds |= {"promised": np.bool_, "running": np.bool_, "remote": np.bool_}  # type: ignore[dict-item]
        columns = {
            name: np.array([getattr(c, name) for c in candidates], dtype=kinds.get(name, np.int64))
            for name in (column.name for column in fields(cls)[1:])
        }
        return cls([c.id for c in candidates], **columns)

    def rows(self) -> list[Candidate]:
        """The same as objects."""
        names = [column.name for column in fields(self)[1:]]
        values = zip(*(getattr(self, name).tolist() for name in names), strict=True)
        return [Candidate(id_, **dict(zip(names, row, strict=True))) for id_, row in zip(self.ids, values, strict=True)]


@dataclass(frozen=True, slots=True)
class Former:
    """How batches are formed.

    ``margin`` is the share of every deadline's distance that is left free for steps that take longer than
    predicted, ``share`` of all tokens goes to best effort at least, and no batch is planned longer than
    ``longest_steps`` times that of a single token, or than ``longest_s``, unless decodes alone take half as long: so
    new arrivals are seen soon, and what a batch costs without any token is a small part of it. A first prompt that is
    promised may make it :data:`~common.batching_table.WHOLE` times as long in steps, and so may all while no deadline
    is nearer than :data:`~common.batching_table.FAR` such batches.
    """

    margin: float = 0.05
    share: float = 0.05
    longest_steps: float = 6.0
    longest_s: float = inf

    def within(self, latency: LatencyModel, times: float = 1.0) -> float:
        """The longest batch of an engine in seconds, or so many times as long but not above ``longest_s``."""
        return min(self.longest_s, times * self.longest_steps * latency.decode_seconds(1, 0))


@dataclass(frozen=True, slots=True)
class Pull:
    """A promised sequence whose KV is on its way; fields as in :class:`Candidate`."""

    due_s: float
    tpot_s: float
    checked_in: int = 1


def with_pulls(former: Former, pulls: Iterable[Pull], now_s: float, step_s: float) -> Former:
    """The same with batches short enough for what is pulled, which is noticed at a batch's end only.

    Decode steps of ``step_s`` up to the token that is checked next are still to come after it, and prompts get a share
    of them. Where that token can't be in time any more, batches last a TPOT.
    """
    longest_s = former.longest_s
    for pull in pulls:
        if pull.due_s < inf:
            checked_s = pull.due_s + (pull.checked_in - 1) * pull.tpot_s
            room_s = (checked_s - now_s) * (1 - former.margin) - pull.checked_in * step_s / HURRY
            longest_s = min(longest_s, max(room_s, pull.tpot_s * (1 - former.margin), WORTH * step_s))
    return former if longest_s == former.longest_s else replace(former, longest_s=longest_s)


@dataclass(frozen=True, slots=True)
class BatchState:
    """All that a batch depends on. ``lookahead_tokens`` are KV slots that a sequence needs beyond its tokens.

    ``credit_tokens`` is what best effort was left owing of its share, as the batch before reported it.
    """

    columns: Columns
    latency: LatencyModel
    free_blocks: int
    block_size: int
    max_tokens: int
    max_seqs: int
    lookahead_tokens: int = 0
    credit_tokens: float = 0.0
    former: Former = field(default_factory=Former)


@dataclass(frozen=True, slots=True)
class Batch:
    """What to compute, most urgent first: tokens by sequence, 0 for one that is let in to pull its KV.

    A decode's tokens are one and the ``drafts`` to verify; who has none is not in ``drafts``. Those in ``preempt``
    lose their KV and keep their tokens. ``seconds`` is the predicted duration.
    """

    tokens: Mapping[str, int]
    drafts: Mapping[str, int]
    preempt: tuple[str, ...]
    seconds: float
    credit_tokens: float


def form_batch(state: BatchState, now_s: float) -> Batch:
    """The next iteration; changes nothing."""
    columns, ids = state.columns, state.columns.ids
    table = _table(state, now_s)
    placed, preempted, seconds, credit_tokens = core.form(table)
    order = table.rows["order"][:placed]
    names = [ids[index] for index in order.tolist()]
    tokens = table.rows["granted"][order].tolist()
    decodes = table.rows["decoding"][order].tolist()
    drafts = {name: n - 1 for name, n, is_ in zip(names, tokens, decodes, strict=True) if is_ and n > 1}
    return Batch(
        tokens=dict(zip(names, tokens, strict=True)),
        drafts=drafts if columns.drafts.any() else {},
        preempt=tuple(ids[index] for index in table.rows["preempted"][:preempted].tolist()),
        seconds=seconds,
        credit_tokens=credit_tokens,
    )


def _table(state: BatchState, now_s: float) -> Table:
    columns, latency, former = state.columns, state.latency, state.former
    decoding = columns.running & (columns.todo_tokens <= 1) & ~columns.remote
    late_s = columns.arrival_s + LATE * (columns.due_s - columns.arrival_s)
    rows = np.zeros(len(columns.ids), dtype=ROW)
    rows["todo"], rows["context"] = columns.todo_tokens, columns.context_tokens
    rows["checked"], rows["drafts"] = columns.checked_in, columns.drafts
    rows["arrival"], rows["due"], rows["tpot"] = columns.arrival_s, columns.due_s, columns.tpot_s
    rows["promised"], rows["running"], rows["remote"] = columns.promised, columns.running, columns.remote
    rows["decoding"], rows["granted"] = decoding, -1
    return Table(
        rows=rows,
        decoders=_sorted(columns.promised & decoding, columns.due_s),
        prompts=_sorted(columns.promised & ~decoding, np.where(columns.due_s >= now_s, columns.due_s, late_s)),
        spare=_sorted(~columns.promised, columns.arrival_s, ~decoding),
        victims=_sorted(columns.running, -columns.arrival_s, columns.promised),
        pieces=np.array([(piece.k_token, piece.k_draft, piece.base) for piece in latency.pieces]),
        now_s=float(now_s),
        k_seq=float(latency.k_seq),
        k_kv=float(latency.k_kv),
        k_attn=float(latency.k_attn),
        free_blocks=state.free_blocks,
        block_size=state.block_size,
        max_tokens=state.max_tokens,
        max_seqs=state.max_seqs,
        lookahead=state.lookahead_tokens,
        margin=float(former.margin),
        share=float(former.share),
        longest_s=float(former.within(latency)),
        whole_s=float(former.within(latency, WHOLE)),
        credit=float(state.credit_tokens),
    )


def _sorted(chosen: Bools, *keys: Floats | Bools) -> Ints:
    """Row numbers of the chosen, by the last key first; ties stay in order."""
    found = np.flatnonzero(chosen)
    return np.asarray(found[np.lexsort(tuple(key[found] for key in keys))])


def warm_up() -> None:
    """Compile, or load what was compiled before, so that the first batch does not wait for it (seconds)."""
    model = LatencyModel((Piece(1e-4, 0.0, 1e-3),))
    form_batch(BatchState(Columns.of([Candidate("warm")]), model, 8, 16, 8, 8), 0.0)
