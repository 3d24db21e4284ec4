"""vLLM's scheduler, observed: it exports load and step times, and decides nothing of its own.

With :mod:`common.engine.vllm_batching` and :mod:`common.engine.nixl` the only file that touches what vLLM does not
promise to keep.
"""

import asyncio
import functools
import os
import threading
import time
from collections import deque
from typing import Any

import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from common.engine.exports import Kind, Writer
from common.errors import EngineError

EXTRA = "slos"
"""Key of our part of ``SamplingParams.extra_args`` and of ``VllmConfig.additional_config``."""

_PARENT_CHECK_S = 0.5
_IDLE_S = 0.01
"""Between two steps from which the engine had nothing to do."""


def check_internals() -> None:
    """Raise EngineError if this vLLM lacks anything that this file relies on."""
    needed = {
        Scheduler: ("schedule", "update_from_output", "add_request", "finish_requests", "get_request_counts"),
        AsyncLLM: ("from_vllm_config", "generate", "collective_rpc", "errored", "shutdown"),
    }
    missing = [f"{cls.__name__}.{name}" for cls, names in needed.items() for name in names if not hasattr(cls, name)]
    if missing:
        raise EngineError(f"vLLM {vllm.__version__} is not supported: it lacks {', '.join(missing)}; 0.32 is")


def scheduler_for(async_scheduling: bool, batch_policy: str) -> str:
    """Import path of the scheduler that fits the engine's scheduling mode and forms batches by ``slo`` or ``stock``."""
    kind = "AsyncScheduler" if async_scheduling else "Scheduler"
    if batch_policy == "stock":
        return f"{__name__}.Observed{kind}"
    return f"common.engine.vllm_batching.Planned{kind}"


async def stop(llm: AsyncLLM) -> None:
    """Shut an engine down; every unfinished ``generate`` raises EngineDeadError, vLLM alone leaves them waiting."""
    if llm.output_handler is not None:
        llm.output_handler.cancel()
        await asyncio.wait({llm.output_handler})
    llm.output_processor.propagate_error(EngineDeadError())
    context = llm.engine_core.resources.ctx
    await asyncio.to_thread(llm.shutdown)
    await asyncio.sleep(0)  # lets the sockets close that shutdown hands to this loop
    context.destroy(linger=0)


@functools.cache
def writer(path: str) -> Writer:
    """The engine core's one writer."""
    return Writer(path)


def writer_of(vllm_config: Any) -> Writer:
    """The writer that a configuration names."""
    return writer(vllm_config.additional_config[EXTRA]["export"])


def terms_of(request: Any) -> dict[str, Any]:
    """What we told vLLM about a request beyond its sampling."""
    extra = (request.sampling_params and request.sampling_params.extra_args) or {}
    return dict(extra.get(EXTRA, {}))


def key_of(request: Any) -> int:
    """A request's number in events."""
    return int(terms_of(request).get("key", 0))


class Observed:
    """Mixin over vLLM's schedulers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._writer = writer_of(self.vllm_config)  # type: ignore[attr-defined] # of the scheduler below
        self._in_flight: deque[tuple[float, tuple[float, ...], list[tuple[int, int, int]]]] = deque()
        self._last_step_s = 0.0
        self._last_update_s = 0.0
        self._publish()
        _die_with_parent()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule as vLLM does, and note what was scheduled and when."""
        output = super().schedule(*args, **kwargs)  # type: ignore[misc] # of the scheduler below
        if output.total_num_scheduled_tokens:
            now_s = time.time()
            for new in output.scheduled_new_reqs:
                self._writer.event(Kind.SCHEDULED, key_of(self.requests[new.req_id]), now_s)  # type: ignore[attr-defined]
            self._in_flight.append((time.perf_counter(), *self._batch(output)))
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Update as vLLM does; the step lasted until now, from its scheduling or the end of the one before."""
        now_s = time.perf_counter()
        if scheduler_output.total_num_scheduled_tokens and self._in_flight:
            scheduled_s, batch, chunks = self._in_flight.popleft()
            self._last_step_s = now_s - max(scheduled_s, self._last_update_s)
            between_s = max(0.0, scheduled_s - self._last_update_s)
            self._last_update_s = now_s
            self._writer.event(Kind.STEP, 0, *batch, self._last_step_s)
            for chunk in chunks:
                self._writer.event(Kind.CHUNK, *chunk, time.time())
            if between_s < _IDLE_S:
                self._measured(batch, self._last_step_s + between_s)
        result = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        self._publish()
        return result

    def add_request(self, request: Any) -> None:
        """Add, and export that it waits."""
        super().add_request(request)  # type: ignore[misc]
        self._publish()

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """Abort, and export what is free now: an idle engine makes no further step."""
        finished = super().finish_requests(*args, **kwargs)  # type: ignore[misc]
        self._publish()
        return finished

    def _batch(self, output: Any) -> tuple[tuple[float, ...], list[tuple[int, int, int]]]:
        """Features of a batch, and its prefill chunks: a job's number, tokens, and tokens in KV after it."""
        kv_tokens = attended = 0.0
        chunks = []
        drafts = output.scheduled_spec_decode_tokens
        for request_id, tokens in output.num_scheduled_tokens.items():
            request = self.requests[request_id]  # type: ignore[attr-defined]
            context = max(0, request.num_computed_tokens - tokens)
            if context < request.num_prompt_tokens:
                chunks.append((key_of(request), tokens, context + tokens))
            if tokens > 1 and request_id not in drafts:
                attended += tokens * (context + tokens / 2)
            else:
                kv_tokens += context
        total, proposed = output.total_num_scheduled_tokens, output.num_spec_tokens_to_schedule
        return (float(total), float(len(output.num_scheduled_tokens)), kv_tokens, attended, float(proposed)), chunks

    def _measured(self, batch: tuple[float, ...], seconds: float) -> None:
        """A step and what was done since the one before took so long; ``batch`` is as in the step's event."""

    def _exports(self) -> dict[str, float]:
        """What a policy adds to the state."""
        return {}

    def _publish(self) -> None:
        scheduler: Any = self
        running, waiting = scheduler.get_request_counts()
        queued = (*scheduler.waiting, *scheduler.kv_holding_waiting)
        self._writer.update(
            running=running,
            running_tokens=sum(request.num_tokens for request in scheduler.running),
            waiting=waiting,
            waiting_tokens=sum(request.num_tokens - request.num_computed_tokens for request in queued),
            free_blocks=scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            held=len(scheduler.requests) - running - waiting,
            step_s=self._last_step_s,
            **self._exports(),
        )


class ObservedScheduler(Observed, Scheduler):  # type: ignore[misc] # vLLM is not typed for us
    """For engines that wait for a step before they plan the next."""


class ObservedAsyncScheduler(Observed, AsyncScheduler):  # type: ignore[misc] # vLLM is not typed for us
    """For engines that plan a step while the one before runs."""


def _die_with_parent() -> None:
    """An engine core whose worker was killed would hold memory and KV for ever; nobody else ends it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
