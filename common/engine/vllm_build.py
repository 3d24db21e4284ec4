"""Builds a vLLM engine from our settings; the only place that imports vLLM whole, which takes seconds."""

from collections.abc import Callable
from typing import Any

from common.engine import vllm_config as configuration
from common.errors import EngineError
from common.settings import Settings
from common.telemetry.logs import get_logger

log = get_logger(__name__)


def build(
    settings: Settings, engine_id: str, export: str, scheduler_cls: str | None
) -> tuple[Any, frozenset[int], Any]:
    """A started ``AsyncLLM``, its end-of-sequence tokens, and its configuration; raises EngineError and what vLLM does.

    ``scheduler_cls`` replaces the scheduler that the settings ask for.
    """
    cpu = configuration.is_cpu_build()
    configuration.prepare_environment(cpu)
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from common.engine import nixl, vllm_batching, vllm_cpu_worker, vllm_scheduler

    vllm_scheduler.check_internals()
    batch_policy = possible(settings.batch_policy, vllm_batching.check_internals)
    nixl.check_internals()
    arguments = configuration.engine_arguments(settings, cpu, engine_id, export)
    config = AsyncEngineArgs(**arguments).create_engine_config()
    scheduling = config.scheduler_config
    scheduling.scheduler_cls = scheduler_cls or vllm_scheduler.scheduler_for(scheduling.async_scheduling, batch_policy)
    eos = configuration.stop_ids(config)
    if cpu:
        vllm_cpu_worker.check_internals()
        configuration.start_by_fork()
    return AsyncLLM.from_vllm_config(config, disable_log_stats=True), eos, config


def possible(batch_policy: str, check: Callable[[], None]) -> str:
    """The batch policy, or ``stock`` where ``check`` raises EngineError: this vLLM can't follow it."""
    if batch_policy == "stock":
        return batch_policy
    try:
        check()
    except EngineError as error:
        log.warning("vLLM forms batches by itself", reason=str(error))
        return "stock"
    return batch_policy
