"""The paper's policy (SLOs-Serve, sections 3 and 4), as a baseline: plan by replica, bind at arrival, route on.

Each request belongs to a replica when it comes. A replica selects its new requests by dynamic programming in order of
prefill deadline; what runs can't be dropped. Who is declined asks the next replica, and in the end becomes best
effort, which uses what is left over. What drafts would save counts in a replica's budget; how many tokens are drafted
is for engines to choose. A replica is a prefill worker with itself, or with a decode worker where roles are kept apart.
"""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from admission.lanes import KV_LIMIT, Lane, lanes_of, pool
from admission.paper import Newcomer, Replica, accept
from admission.plan import ClusterState, Held, Plan, Running
from common.messages import Decision, Overload, Stage, Verdict

MIN_RETRY_S = 0.1
SPECULATED_S = 0.1
"""Batches are planned at least this often, whatever the TPOT."""


@dataclass(slots=True)
class _Pair:
    """Where one replica's work goes."""

    prefill: Lane
    decode: Lane
    replica: Replica


@dataclass(slots=True)
class _Cycle:
    state: ClusterState
    now_s: float
    pairs: list[_Pair]
    dispatch: dict[str, Decision] = field(default_factory=dict)
    defer: dict[str, Decision] = field(default_factory=dict)
    reject: dict[str, Decision] = field(default_factory=dict)


class SlosServe:
    """See the module; ``acceptance`` is the chance that a drafted token is accepted."""

    def __init__(self, acceptance: float = 0.7) -> None:
        self._acceptance = acceptance

    def warm_up(self) -> None:
        """Nothing is compiled here."""

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        """Decide on the held requests; who was declined once is not asked about again."""
        cycle = _Cycle(state, now_s, _pairs(state, now_s, self._acceptance))
        if not cycle.pairs:
            return Plan({}, {}, {})
        new = [one for one in state.held if one.objective is not None and not one.deferred and not one.missed_round]
        asking = {i: [one for one in new if _home(one, len(cycle.pairs)) == i] for i in range(len(cycle.pairs))}
        for _ in cycle.pairs:
            declined = {i: self._ask(cycle, pair, asking[i]) for i, pair in enumerate(cycle.pairs)}
            asking = {(i + 1) % len(cycle.pairs): those for i, those in declined.items()}
        for one in sorted((one for those in asking.values() for one in those), key=_age):
            _decline(cycle, one)
        for one in sorted((one for one in state.held if _unpromised(cycle, one)), key=_age):
            _leave_over(cycle, one)
        return Plan(cycle.dispatch, cycle.defer, cycle.reject, _wake_s(cycle))

    def _ask(self, cycle: _Cycle, pair: _Pair, asking: Sequence[Held]) -> list[Held]:
        """Admit whom the replica selects; returns the others."""
        ordered = sorted(asking, key=lambda one: (one.objective.prefill_due_s if one.objective else 0.0, one.id))
        accepted = accept([_newcomer(cycle, pair, one) for one in ordered], pair.replica)
        for i in accepted:
            _admit(cycle, pair, ordered[i])
        return [one for i, one in enumerate(ordered) if i not in accepted]


def _pairs(state: ClusterState, now_s: float, acceptance: float) -> list[_Pair]:
    """One replica for each prefill worker; decode workers are shared out in turn."""
    lanes = lanes_of(state, now_s)
    prefills = sorted(pool(lanes.values(), Stage.PREFILL), key=lambda lane: lane.worker.id)
    decodes = sorted(pool(lanes.values(), Stage.DECODE), key=lambda lane: lane.worker.id)
    if all(Stage.PREFILL in lane.worker.may and Stage.DECODE in lane.worker.may for lane in lanes.values()):
        prefills = decodes = sorted(lanes.values(), key=lambda lane: lane.worker.id)
    pairs = []
    for i, prefill in enumerate(prefills):
        same = [lane for lane in decodes if lane.worker.fingerprint == prefill.worker.fingerprint]
        if prefills is decodes or (not same and Stage.DECODE in prefill.worker.may):
            same = [prefill]
        if same:
            decode = same[i % len(same)]
            pairs.append(_Pair(prefill, decode, _replica(state, prefill, decode, acceptance)))
    return pairs


def _replica(state: ClusterState, prefill: Lane, decode: Lane, acceptance: float) -> Replica:
    worker = decode.worker
    counts = Counter(_tpot_s(one) for one in state.running if one.decode_worker == worker.id and one.objective)
    memory = KV_LIMIT * worker.total_blocks * worker.block_size - decode.committed_tokens
    together = prefill is decode
    return Replica(
        latency=prefill.worker.latency,
        max_batch_tokens=prefill.worker.max_batch_tokens,
        memory_tokens=memory,
        decoders=dict(counts),
        shares_batches=together,
        backlog_tokens=prefill.backlog_tokens,
        seats=worker.max_seqs - decode.decoders,
        context_tokens=decode.kv_tokens,
        decode_latency=worker.latency,
        acceptance=acceptance if any(piece.k_draft > 0 for piece in worker.latency.pieces) else 0.0,
    )


def _tpot_s(running: Running) -> float:
    assert running.objective is not None
    return running.objective.tightest_tpot_s


def _newcomer(cycle: _Cycle, pair: _Pair, one: Held) -> Newcomer:
    assert one.objective is not None
    due_s = one.objective.prefill_due_s - cycle.now_s - cycle.state.hop_s
    latency = pair.replica.latency
    linear = max(piece.k_token for piece in latency.pieces)
    work = one.need_tokens + round(latency.k_attn / linear * one.need_tokens**2 / 2)
    return Newcomer(due_s, work, one.need_tokens + one.max_tokens, one.objective.tightest_tpot_s, one.value)


def _home(one: Held, replicas: int) -> int:
    """The replica that a request belongs to: the same at every plan."""
    return zlib.crc32(one.id.encode()) % replicas


def _age(one: Held) -> tuple[float, str]:
    return one.arrival_s, one.id


def _unpromised(cycle: _Cycle, one: Held) -> bool:
    return one.id not in cycle.dispatch and one.id not in cycle.reject


def _admit(cycle: _Cycle, pair: _Pair, one: Held) -> None:
    assert one.objective is not None
    tpot_s = one.objective.tightest_tpot_s
    wait_s = pair.prefill.backlog_s + pair.prefill.prefill_s(one.need_tokens)
    _commit(pair, one, tpot_s)
    ttft_ms = (cycle.now_s + cycle.state.hop_s + wait_s - one.arrival_s) * 1e3
    decision = _decision(cycle, one, Verdict.ADMITTED, "feasible", pair)
    tpot_ms = pair.decode.step_s() * 1e3
    cycle.dispatch[one.id] = replace(decision, predicted_ttft_ms=ttft_ms, predicted_tpot_ms=tpot_ms)


def _decline(cycle: _Cycle, one: Held) -> None:
    if one.overload is Overload.REJECT:
        retry_s = max(MIN_RETRY_S, min(pair.prefill.backlog_s for pair in cycle.pairs))
        decision = _decision(cycle, one, Verdict.REJECTED, "declined")
        cycle.reject[one.id] = replace(decision, retry_after_s=retry_s)
    else:
        cycle.defer[one.id] = _decision(cycle, one, Verdict.DEFERRED, "declined")


def _leave_over(cycle: _Cycle, one: Held) -> None:
    """Best effort: where no promised prompt waits and the KV is free."""
    need = one.need_tokens + one.max_tokens
    free = [pair for pair in cycle.pairs if not pair.prefill.backlog_tokens and pair.replica.memory_tokens >= need]
    if not free:
        return
    pair = min(free, key=lambda pair: (pair.decode.committed_tokens, pair.prefill.worker.id))
    _commit(pair, one, math.inf)
    cycle.defer.pop(one.id, None)
    reason = "best_effort" if one.objective is None else "left_over_capacity"
    cycle.dispatch[one.id] = _decision(cycle, one, Verdict.DEFERRED, reason, pair)


def _commit(pair: _Pair, one: Held, tpot_s: float) -> None:
    pair.prefill.add_prefill(one.need_tokens, pair.prefill.prefill_s(one.need_tokens))
    pair.decode.add_decoder(one.need_tokens, one.need_tokens + one.max_tokens, tpot_s)
    pair.replica = pair.replica.with_one(tpot_s, one.need_tokens, one.need_tokens + one.max_tokens)


def _wake_s(cycle: _Cycle) -> float | None:
    if all(one.id in cycle.dispatch or one.id in cycle.reject for one in cycle.state.held):
        return None
    return cycle.now_s + min(SPECULATED_S, max(0.005, min(pair.prefill.backlog_s for pair in cycle.pairs)))


def _decision(cycle: _Cycle, one: Held, verdict: Verdict, reason: str, pair: _Pair | None = None) -> Decision:
    objective = one.objective
    thinking_s = objective.thinking_tpot_s if objective else None
    return Decision(
        verdict=verdict,
        reason=reason,
        cycle=cycle.state.cycle,
        decided_s=cycle.now_s,
        ttft_ms=objective.ttft_s * 1e3 if objective else None,
        tpot_ms=objective.tpot_s * 1e3 if objective else None,
        thinking_tpot_ms=None if thinking_s is None else thinking_s * 1e3,
        prefill_worker=pair.prefill.worker.id if pair else None,
        decode_worker=pair.decode.worker.id if pair else None,
    )
