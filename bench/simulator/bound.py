"""``bound``: how much a scheduler could attain that knows the future and need not pack requests into engines.

All engines are one fluid server. A prompt is work with a deadline, each further token work with its own; what is left
out is which engine and batch they are in, transfers, queues, noise and the integrality of iterations. An iteration's
fixed cost is charged to decodes by the share of an engine's KV that their context takes (contexts in one iteration
can't exceed it), or to tokens by their share of the largest batch: either is less than what any schedule pays, and the
lower of the two results counts. Tokens are verified at the cheapest draft length.

The set of most requests is found as Kise, Ibaraki and Mine (1978) do on one machine: deadlines are met earliest first,
and where one breaks, the request with the most work before it is dropped. That is optimal where deadlines are in the
order of arrivals, and near it otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bench.metrics import Report, report
from bench.outcome import Outcome
from bench.simulator.objectives import objective, slos
from bench.simulator.settings import SimulationSettings
from bench.workloads.item import Item
from common.messages import Verdict
from common.presets import Preset
from common.slo import TOLERANCE, Objective
from common.speculation import MOST
from common.tiers import Tiers

Floats = NDArray[np.float64]

TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class Demand:
    """A request's work in engine seconds: by ``first_s``, and evenly over its token deadlines until ``last_s``."""

    release_s: float
    first_s: float
    last_s: float
    prompt_work_s: float
    decode_work_s: float


def bound(items: Sequence[Item], preset: Preset, tiers: Tiers, settings: SimulationSettings) -> Report:
    """A report of which the attainment, and what follows from it, means something."""
    objectives, releases = _chain(items, preset, tiers)
    kept = [
        _most(
            [
                None if promise is None else _demand(item, promise, release_s, preset, by_kv)
                for item, promise, release_s in zip(items, objectives, releases, strict=True)
            ],
            settings.workers,
        )
        for by_kv in (True, False)
    ]
    best = min(kept, key=sum)
    outcomes = [
        _outcome(item, promise, release_s, one)
        for item, promise, release_s, one in zip(items, objectives, releases, best, strict=True)
    ]
    found = report(
        outcomes, max(item.arrival_s for item in items) or 1.0, fates=False
    )  # a round by itself: a relaxation
    return replace(found, stationary=True)


def _chain(items: Sequence[Item], preset: Preset, tiers: Tiers) -> tuple[list[Objective | None], list[float]]:
    """Objectives at the latest, releases at the earliest: a session's rounds follow each other as fast as can be."""
    latency, limit = preset.latency, preset.max_batch_tokens
    step_s = latency.decode_seconds(1, 0) / (_tokens(preset, MOST) if preset.drafts else 1.0)
    earliest: dict[str, float] = {}
    latest: dict[str, float] = {}
    objectives, releases = [], []
    for item, (_, slo) in zip(items, slos(items, tiers), strict=True):
        after_s = item.after_s or 0.0
        first = item.after_s is None
        release_s = item.arrival_s if first else earliest.get(item.session, item.arrival_s) + after_s
        due_from_s = item.arrival_s if first else latest.get(item.session, item.arrival_s) + after_s
        promise = objective(slo, item, due_from_s, preset)
        zero_load_s = latency.prefill_seconds(item.prompt_tokens, limit) + step_s * (item.output_tokens - 1)
        earliest[item.session] = release_s + zero_load_s
        last_s = math.inf if promise is None else _due_s(promise, item, item.output_tokens)
        latest[item.session] = max(release_s + zero_load_s, last_s)
        objectives.append(promise)
        releases.append(release_s)
    return objectives, releases


def _due_s(promise: Objective, item: Item, token: int) -> float:
    """When a token is due at the latest, tolerance included, if the first was in time."""
    start_s = promise.prefill_due_s + promise.ttft_s * TOLERANCE
    due_s = promise.token_due_s(token, 0.0, item.thinking_tokens)
    return start_s + (due_s - promise.prefill_due_s) * (1 + TOLERANCE)


def _tokens(preset: Preset, drafts: int) -> float:
    a = preset.acceptance
    return float((1 - a ** (drafts + 1)) / (1 - a))


def _demand(item: Item, promise: Objective, release_s: float, preset: Preset, by_kv: bool) -> Demand:
    latency = preset.latency
    piece = min(latency.pieces, key=lambda one: (one.k_token == 0, one.k_token))
    context = item.prompt_tokens + item.output_tokens / 2
    base_s = min(one.base for one in latency.pieces)
    k_draft = min(one.k_draft for one in latency.pieces)
    kv_share = min(1.0, max(context / preset.kv_tokens, 1 / preset.max_seqs)) if by_kv else 0.0
    per_token_s = piece.k_token + (0.0 if by_kv else base_s / preset.max_batch_tokens)
    reading_s = latency.k_kv * context + latency.k_seq
    token_s = min(
        ((1 + n) * per_token_s + reading_s + kv_share * (base_s + n * k_draft)) / _tokens(preset, n)
        for n in (range(MOST + 1) if preset.drafts else (0,))
    )
    return Demand(
        release_s=release_s,
        first_s=promise.prefill_due_s + promise.ttft_s * TOLERANCE,
        last_s=_due_s(promise, item, item.output_tokens),
        prompt_work_s=item.prompt_tokens * per_token_s + latency.k_attn * item.prompt_tokens**2 / 2,
        decode_work_s=(item.output_tokens - 1) * token_s,
    )


def _most(demands: Sequence[Demand | None], workers: int) -> list[bool]:
    """Which requests are kept, in the order given; those without an SLO are not."""
    order = sorted(
        (i for i, one in enumerate(demands) if one is not None),
        key=lambda i: (demands[i].release_s, i),  # type: ignore[union-attr]
    )
    kept = [False] * len(demands)
    if order:
        jobs = [one for one in (demands[i] for i in order) if one is not None]
        for i, stays in zip(order, _Server(jobs, workers).run(), strict=True):
            kept[i] = stays
    return kept


class _Server:
    """Fluid work by deadline tick; what is due first is done first."""

    def __init__(self, jobs: Sequence[Demand], workers: int) -> None:
        self._workers = workers
        self._start_s = min(job.release_s for job in jobs)
        self._release = np.array([job.release_s for job in jobs])
        self._prompt_work = np.array([job.prompt_work_s for job in jobs])
        self._first = self._ticks(np.array([job.first_s for job in jobs]))
        self._last = np.maximum(self._first, self._ticks(np.array([job.last_s for job in jobs])))
        self._rate = np.array([job.decode_work_s for job in jobs]) / (self._last - self._first + 1)
        self._work = np.zeros(int(self._last.max()) + 2)
        self._reached = np.full(len(jobs), -1, np.int64)
        self._kept = np.ones(len(jobs), np.bool_)
        self._frontier = 0

    def run(self) -> list[bool]:
        now_s = self._start_s
        for i, release_s in enumerate(self._release.tolist()):
            self._serve(i, now_s, release_s)
            now_s = release_s
            self._add(i, 1.0)
            self._frontier = min(self._frontier, int(self._first[i]))
            while (broken := self._broken(now_s)) is not None and self._drop(i, broken):
                pass
        return [bool(one) for one in self._kept]

    def _ticks(self, times_s: Floats) -> NDArray[np.int64]:
        return np.ceil((times_s - self._start_s) / TICK_S).astype(np.int64)

    def _add(self, i: int, sign: float) -> None:
        done = int(self._reached[i])
        if self._first[i] > done:
            self._work[self._first[i]] += sign * self._prompt_work[i]
        self._work[max(int(self._first[i]), done + 1) : self._last[i] + 1] += sign * self._rate[i]

    def _serve(self, released: int, now_s: float, until_s: float) -> None:
        """Do what is due first; requests that came since have reached at least as far."""
        room = self._workers * (until_s - now_s)
        at = self._frontier
        while room > 0 and at < len(self._work):
            ahead = self._work[at : at + 512]
            total = np.cumsum(ahead)
            if total[-1] <= room:
                room -= float(total[-1])
                ahead[:] = 0.0
                at += len(ahead)
                continue
            stop = int(np.searchsorted(total, room, side="right"))
            before = float(total[stop - 1]) if stop else 0.0
            ahead[:stop] = 0.0
            ahead[stop] -= room - before
            at += stop
            room = 0.0
        self._frontier = at
        np.maximum(self._reached[:released], at - 1, out=self._reached[:released])

    def _broken(self, now_s: float) -> int | None:
        """The first tick whose work can't be done by then."""
        first = max(0, int((now_s - self._start_s) / TICK_S))
        begin = min(first, self._frontier)
        total = np.cumsum(self._work[begin:])
        room = self._workers * (np.arange(begin, begin + len(total)) * TICK_S + self._start_s - now_s)
        late = np.flatnonzero(total > np.maximum(room, 0.0) + 1e-9)
        return int(late[0]) + begin if len(late) else None

    def _drop(self, newest: int, tick: int) -> bool:
        """Give up the request with the most work left by the tick; False if there is none."""
        upto = newest + 1
        done, first, last = self._reached[:upto], self._first[:upto], self._last[:upto]
        left = np.where((first > done) & (first <= tick), self._prompt_work[:upto], 0.0)
        left += self._rate[:upto] * np.maximum(0, np.minimum(last, tick) - np.maximum(first, done + 1) + 1)
        left[~self._kept[:upto]] = 0.0
        worst = int(np.argmax(left))
        if left[worst] <= 0:
            return False
        self._add(worst, -1.0)
        np.maximum(self._work, 0.0, out=self._work)
        self._kept[worst] = False
        return True


def _outcome(item: Item, promise: Objective | None, release_s: float, kept: bool) -> Outcome:
    """Just in time, or refused."""
    if promise is None or not kept:
        verdict = Verdict.DEFERRED if promise is None else Verdict.REJECTED
        return Outcome(item, promise, verdict, (), release_s, release_s)
    times = tuple(promise.token_due_s(n, 0.0, item.thinking_tokens) for n in range(1, item.output_tokens + 1))
    return Outcome(item, promise, Verdict.ADMITTED, times, promise.arrival_s, times[-1])
