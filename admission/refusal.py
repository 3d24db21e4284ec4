"""Why an SLO is not promised, what would be possible, and when it is worth trying again."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from admission.attainable import UNATTAINABLE
from admission.jit import compiled
from admission.lane_arrays import Fleet, Floats, Ints, Load, batch_s, ends_after, may_keep, may_take
from admission.memory import HORIZONS
from admission.plan import ClusterState, Held
from admission.request_arrays import Queue
from common.messages import Stage

MIN_RETRY_S = 0.1
MAX_RETRY_S = 3600.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decision's reason, and seconds after which the same request would probably be admitted."""

    reason: str
    retry_after_s: float | None


class Limits(NamedTuple):
    """By request, seconds from now: what its promise fails for.

    ``step_s`` is its least TPOT, alone on the best worker, ``late_s`` by how much its prompt would be late behind all
    that is planned, and ``drain_s`` when decoders will have left that make room for its own.
    """

    step_s: Floats
    late_s: Floats
    drain_s: Floats


def refusal(state: ClusterState, zero_load_s: Floats, limits: Limits, i: int, one: Held) -> Refusal:
    """For request ``i``, whose prompt takes ``zero_load_s[i]`` at least; times by :func:`limits_of`."""
    objective = one.objective
    assert objective is not None
    if one.missed_round:
        return Refusal("session_missed: an earlier round was late", None)
    workers = state.workers.values()
    if one.generated_tokens == 0 and objective.ttft_s < zero_load_s[i]:
        best_s = min(
            worker.latency.prefill_seconds(one.need_tokens, worker.max_batch_tokens)
            for worker in workers
            if Stage.PREFILL in worker.may
        )
        if objective.ttft_s < best_s:
            best_ms = (best_s + state.hop_s) * 1e3
            return Refusal(f"{UNATTAINABLE}TTFT is at least {best_ms:.1f} ms for this prompt", None)
    if objective.tightest_tpot_s < limits.step_s[i]:
        best_s = min(
            worker.latency.decode_seconds(1, one.need_tokens) for worker in workers if Stage.DECODE in worker.may
        )
        if objective.tightest_tpot_s < best_s:
            return Refusal(f"{UNATTAINABLE}TPOT is at least {best_s * 1e3:.1f} ms", None)
    late_s = float(limits.late_s[i])
    if late_s > 0:
        return Refusal("prefill_capacity", _bounded(late_s + MIN_RETRY_S))
    return Refusal("decode_capacity", _bounded(float(limits.drain_s[i])))


def _bounded(seconds: float) -> float:
    return min(MAX_RETRY_S, max(MIN_RETRY_S, seconds)) if not math.isnan(seconds) else MAX_RETRY_S


@compiled
def limits_of(wanted: Ints, queue: Queue, fleet: Fleet, load: Load) -> Limits:
    """Limits of the wanted requests, when the load holds all that is promised and planned."""
    count = queue.tokens.shape[0]
    step_s, late_s, drain_s = np.full(count, math.inf), np.full(count, math.inf), np.full(count, math.inf)
    for i in wanted:
        end_s = math.inf
        for lane in range(fleet.kind.shape[0]):
            if may_take(fleet, lane, True):
                end_s = min(end_s, ends_after(fleet, load, lane, queue.tokens[i]))
            if may_keep(fleet, lane, True):
                extra_s = fleet.k_seq[lane] + fleet.k_kv[lane] * queue.tokens[i]
                step_s[i] = min(step_s[i], batch_s(fleet, lane, 1.0, extra_s))
        late_s[i] = end_s - queue.due_s[i]
        if late_s[i] <= 0:
            drain_s[i] = decode_drain_s(i, queue, fleet, load)
    return Limits(step_s, late_s, drain_s)


@compiled
def decode_drain_s(i: int, queue: Queue, fleet: Fleet, load: Load) -> float:
    """When a decode worker has expectedly lost one of its decoders, and has the KV for this request."""
    best_s = math.inf
    for lane in range(fleet.kind.shape[0]):
        decoders = load.decoders[lane]
        if not may_keep(fleet, lane, True) or decoders == 0:
            continue
        pace_s = fleet.step_s[lane] if fleet.step_s[lane] > 0 else load.tightest_s[lane]
        enough = min(fleet.kv[lane] - queue.tokens[i], load.kv[lane, 0] * (decoders - 1) / decoders)
        for horizon in range(1, len(HORIZONS)):
            if load.kv[lane, horizon] <= enough:
                best_s = min(best_s, pace_s * min(HORIZONS[horizon], HORIZONS[horizon - 1] * 2))
                break
    return best_s
