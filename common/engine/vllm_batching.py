"""The batch policy inside vLLM's scheduler: it decides who is computed and how much, vLLM does the rest.

Part of the file family that touches vLLM's internals. The last word on every token count is vLLM's hook
``_reserve_prefill_lookahead``; order is that of ``running`` and ``waiting``. Whatever the policy raises, the step is
scheduled as stock vLLM does, and counted.
"""

import inspect
import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from common.batching import Batch, BatchState, Columns, Former, Pull, form_batch, warm_up, with_pulls
from common.engine.drift import Drift
from common.engine.margin import Margin
from common.engine.promises import Promise
from common.engine.vllm_drafting import Drafting
from common.engine.vllm_scheduler import EXTRA, terms_of
from common.errors import EngineError
from common.latency_model import Batch as Work

_HOOK = "_reserve_prefill_lookahead"
_HOOK_ARGUMENTS = ["self", "request", "num_computed_tokens", "num_new_tokens"]
_QUEUED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
_LOGGED_ERRORS = 10
_SPARE_PROMISES = 64
_AROUND_RATE = 0.1
_MOST_AROUND_S = 0.01

_log = logging.getLogger(__name__)


def check_internals() -> None:
    """Raise EngineError if this vLLM lacks anything that the policy relies on."""
    needed = (
        _HOOK,
        "_preempt_request",
        "_request_blocks_can_be_freed",
        "_update_after_schedule",
        "update_draft_token_ids",
    )
    missing = [name for name in needed if not hasattr(Scheduler, name)]
    if not missing and list(inspect.signature(getattr(Scheduler, _HOOK)).parameters) != _HOOK_ARGUMENTS:
        missing.append(f"{_HOOK} with its arguments")
    if not missing and inspect.getsource(Scheduler.schedule).count(f"self.{_HOOK}(") != 2:
        missing.append(f"{_HOOK} in both loops of schedule")
    if missing:
        text = f"vLLM {vllm.__version__} can't follow the batch policy: it lacks {', '.join(missing)}"
        raise EngineError(f"{text}; 0.32 can")


class Planned(Drafting):
    """Mixin over vLLM's schedulers that forms batches by :func:`common.batching.form_batch`.

    What planning, scheduling and sending take around a step's computation is measured, and deadlines are that much
    nearer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._holding: frozenset[str] = frozenset()
        self._credit_tokens = 0.0
        self._busy_until_s = 0.0
        self._began_s = self._around_s = 0.0
        self._errors = self._preempted = 0
        super().__init__(*args, **kwargs)
        options = self.vllm_config.additional_config[EXTRA]  # type: ignore[attr-defined] # of the scheduler below
        self._drift = Drift(self._latency)
        self._margin = Margin(options["margin"])
        self._former = Former(margin=self._margin.value, share=options["share"])
        self._hop_s = float(options["hop_s"])
        _check_instance(self)
        warm_up()

    # vLLM's verbs

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, and let vLLM schedule what is planned; without a plan, as stock vLLM does."""
        started_s = self._began_s = time.perf_counter()
        held: list[Any] = []
        try:
            batch = self._plan()
            held = self._arrange(batch)
        except Exception:
            self._failed()
        self._plan_s = time.perf_counter() - started_s
        try:
            return super().schedule(*args, **kwargs)
        finally:
            self._grants = None
            self.waiting.extend(held)  # type: ignore[attr-defined] # of the scheduler below

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        """vLLM's last word on a request's tokens, and ours; what holds pulled KV or is padded is left alone."""
        tokens = num_new_tokens
        if self._grants is not None and not self._untouchable(request, num_computed_tokens, num_new_tokens):
            tokens = min(tokens, self._grants.get(request.request_id, 0))
        return int(super()._reserve_prefill_lookahead(request, num_computed_tokens, tokens))  # type: ignore[misc]

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Update as vLLM does, and count the new tokens towards their deadlines."""
        result = super().update_from_output(scheduler_output, model_runner_output)
        now_s = time.time()
        drafts = scheduler_output.scheduled_spec_decode_tokens
        for outputs in result.values():
            for output in outputs.outputs:
                promise = self._promises.get(output.request_id)
                if promise is None or not output.new_token_ids:
                    continue
                promise.advance(output.new_token_ids, now_s)
                if output.finish_reason is None:
                    self._verified(promise, len(drafts.get(output.request_id, ())), len(output.new_token_ids) - 1)
        if len(self._promises) > len(self.requests) + _SPARE_PROMISES:  # type: ignore[attr-defined]
            self._promises = {id_: p for id_, p in self._promises.items() if id_ in self.requests}  # type: ignore[attr-defined]
        if scheduler_output.total_num_scheduled_tokens and not self._in_flight:
            around_s = min(_MOST_AROUND_S, time.perf_counter() - self._began_s - self._last_step_s)
            self._around_s += _AROUND_RATE * (around_s - self._around_s)
        return result

    def _measured(self, batch: tuple[float, ...], seconds: float) -> None:
        """Learn how far steps are from what was predicted, and how fast the engine is now."""
        super()._measured(batch, seconds)
        tokens, seqs, kv_tokens, attended, drafts = batch
        work = Work(int(tokens), int(seqs), int(kv_tokens), attended, int(drafts))
        self._margin.observe(self._latency.seconds(work), self._last_step_s)
        if self._former.margin != self._margin.value:
            self._former = replace(self._former, margin=self._margin.value)
        self._drift.observe(work, self._last_step_s)
        self._latency = self._drift.latency

    def add_request(self, request: Any) -> None:
        """Add, with its promise."""
        self._promises[request.request_id] = Promise.of(terms_of(request), time.time(), self._hop_s)
        super().add_request(request)

    # from vLLM to a plan

    def _plan(self) -> Batch:
        self._steps += 1
        told = self._writer.model()
        if told is not None:
            self._drift.use(told)
            self._latency = self._drift.latency
        now_s = self._busy_until_s if self._in_flight else 0.0
        now_s = max(time.time(), now_s) + self._around_s
        batch = self._all_decode()
        if batch is None:
            batch = self._form(self._state(now_s), now_s)
        self._credit_tokens = batch.credit_tokens
        self._busy_until_s = now_s + batch.seconds
        self._writer.update(busy_until_s=self._busy_until_s)
        return batch

    def _all_decode(self) -> Batch | None:
        """What :func:`form_batch` gives where nothing is to be decided; its arrays would cost as much as the rest."""
        scheduler: Any = self
        running = scheduler.running
        if scheduler.waiting or scheduler.kv_holding_waiting or scheduler.num_spec_tokens or not running:
            return None
        if min(scheduler.kv_cache_manager.block_pool.get_num_free_blocks(), scheduler.max_num_scheduled_tokens) < len(
            running
        ):
            return None
        if any(r.num_tokens + r.num_output_placeholders - r.num_computed_tokens != 1 for r in running):
            return None
        if len({self._promises[r.request_id].objective is None for r in running}) > 1:
            return None
        self._holding = frozenset()
        seconds = self._latency.decode_seconds(len(running), sum(r.num_computed_tokens for r in running))
        return Batch({r.request_id: 1 for r in running}, {}, (), seconds, 0.0)

    def _state(self, now_s: float) -> BatchState:
        scheduler: Any = self
        loaded = [r for r in scheduler.kv_holding_waiting if self._is_loaded(r)]
        self._holding = frozenset(r.request_id for r in loaded)
        queued = [r for r in scheduler.waiting if r.status in _QUEUED]
        columns = self._columns([*scheduler.running, *loaded, *queued], len(scheduler.running) + len(loaded))
        free_blocks = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if scheduler.num_spec_tokens:
            self._limit_drafts(columns, free_blocks, now_s)
        return BatchState(
            columns=columns,
            latency=self._latency,
            free_blocks=free_blocks,
            block_size=scheduler.block_size,
            max_tokens=scheduler.max_num_scheduled_tokens,
            max_seqs=scheduler.max_num_running_reqs,
            lookahead_tokens=scheduler.num_lookahead_tokens,
            credit_tokens=self._credit_tokens,
            former=with_pulls(self._former, self._pulls(queued), now_s, self._decode_step_s()),
        )

    def _pulls(self, queued: list[Any]) -> list[Pull]:
        """Sequences whose KV is on its way, or will be from this step on."""
        waiting = [r for r in self.kv_holding_waiting if not self._is_loaded(r)]  # type: ignore[attr-defined]
        promises = [self._promises[r.request_id] for r in (*waiting, *filter(_pulls_kv, queued))]
        return [Pull(promise.due_s, promise.tpot_s, promise.checked_in) for promise in promises]

    def _decode_step_s(self) -> float:
        running = self.running  # type: ignore[attr-defined]
        return self._latency.decode_seconds(len(running) + 1, sum(r.num_computed_tokens for r in running))

    def _form(self, state: BatchState, now_s: float) -> Batch:
        return form_batch(state, now_s)

    def _columns(self, requests: list[Any], running: int) -> Columns:
        """Candidates in vLLM's order; what runs or has its KV comes first."""
        promises = [self._promises[r.request_id] for r in requests]
        ahead = np.array([r.num_output_placeholders for r in requests], dtype=np.int64)
        computed = np.array([r.num_computed_tokens for r in requests], dtype=np.int64)
        known = np.array([r.num_tokens for r in requests], dtype=np.int64)
        tpot_s = np.array([p.tpot_s for p in promises])
        due_s = np.array([p.due_s for p in promises])
        if ahead.any():  # a step in flight has these sequences' next tokens; planned are those after
            due_s = np.where(np.isfinite(due_s), due_s + tpot_s * (ahead > 0), due_s)
        count = len(requests)
        is_running = np.arange(count) < running
        remote = np.zeros(count, dtype=np.bool_)
        for index in range(running, count):
            remote[index] = _pulls_kv(requests[index])
        drafts = np.zeros(count, dtype=np.int64)
        if self.num_spec_tokens:  # type: ignore[attr-defined]
            drafts[:] = [len(r.spec_token_ids) for r in requests]
        return Columns(
            ids=[r.request_id for r in requests],
            todo_tokens=np.maximum(known + ahead - computed, 0),
            context_tokens=computed,
            arrival_s=np.array([p.arrival_s for p in promises]),
            due_s=due_s,
            tpot_s=tpot_s,
            checked_in=np.array([p.checked_in for p in promises], dtype=np.int64),
            drafts=drafts,
            promised=np.isfinite(due_s),
            running=is_running,
            remote=remote,
        )

    def _is_loaded(self, request: Any) -> bool:
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
            return request.request_id in self.finished_recving_kv_req_ids  # type: ignore[attr-defined]
        return request.status in _QUEUED

    # from a plan to vLLM

    def _arrange(self, batch: Batch) -> list[Any]:
        """Preempt, sort, and return the queued requests that are to wait; from here on the plan binds."""
        scheduler: Any = self
        rank = {id_: number for number, id_ in enumerate(batch.tokens)}
        last = len(rank)
        promises = self._promises
        order = sorted(
            scheduler.running,
            key=lambda r: (
                rank.get(r.request_id, last),
                promises[r.request_id].due_s,
                promises[r.request_id].arrival_s,
            ),
        )
        chosen = [r for r in scheduler.waiting if r.request_id in rank or r.status not in _QUEUED]
        chosen.sort(key=lambda r: rank.get(r.request_id, last))
        held = [r for r in scheduler.waiting if r.request_id not in rank and r.status in _QUEUED]
        scheduler.running[:] = order
        for request in [r for r in order if r.request_id in batch.preempt]:
            if scheduler._request_blocks_can_be_freed(request):
                scheduler.running.remove(request)
                scheduler._preempt_request(request, time.monotonic(), drop_stale_output=scheduler.requires_kv_delivery)
                held.append(request)
                self._preempted += 1
        scheduler.waiting = FCFSRequestQueue(chosen)
        self._grants = dict(batch.tokens)
        return held

    def _untouchable(self, request: Any, computed_tokens: int, new_tokens: int) -> bool:
        if request.status == RequestStatus.RUNNING:
            return False
        padded = new_tokens > request.num_tokens - computed_tokens
        has_all = self._grants is not None and self._grants.get(request.request_id) == 0  # nothing left to pull
        return padded or has_all or request.num_computed_tokens > 0 or request.request_id in self._holding

    def _failed(self) -> None:
        self._errors += 1
        self._grants = None
        if self._errors <= _LOGGED_ERRORS:
            _log.exception("the batch policy failed, vLLM schedules this step")

    def _exports(self) -> dict[str, float]:
        own = {"policy_errors": self._errors, "preempted": self._preempted, "plan_s": self._plan_s}
        return {**super()._exports(), **own}

    _plan_s = 0.0


def _pulls_kv(request: Any) -> bool:
    return bool(request.kv_transfer_params and request.kv_transfer_params.get("do_remote_prefill"))


def _check_instance(scheduler: Any) -> None:
    needed = "running waiting kv_holding_waiting finished_recving_kv_req_ids requests block_size num_lookahead_tokens "
    needed += "max_num_running_reqs max_num_scheduled_tokens num_spec_tokens requires_kv_delivery"
    missing = [name for name in needed.split() if not hasattr(scheduler, name)]
    if missing or not isinstance(scheduler.waiting, FCFSRequestQueue):
        raise EngineError(f"vLLM's scheduler lacks {', '.join(missing) or 'first-come-first-served queues'}")


class PlannedScheduler(Planned, Scheduler):  # type: ignore[misc] # vLLM is not typed for us
    """For engines that wait for a step before they plan the next."""


class PlannedAsyncScheduler(Planned, AsyncScheduler):  # type: ignore[misc] # vLLM is not typed for us
    """For engines that plan a step while the one before runs."""
