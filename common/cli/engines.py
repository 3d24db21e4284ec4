"""What several engines on one machine need in their environment to stay out of each other's way."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from common.engine.cpus import share
from common.settings import Settings


@dataclass(frozen=True, slots=True)
class Machine:
    """What engines can share: usable CPUs and GPUs."""

    cpus: int
    gpus: int
    cpu_ids: tuple[int, ...] = ()

    @classmethod
    def here(cls) -> "Machine":
        """This machine, GPUs counted only if the installed vLLM can use them."""
        ids = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
        return cls(len(ids) or os.cpu_count() or 1, _gpus(), ids)


def engine_environment(
    index: int, engines: int, machine: Machine, settings: Settings, threads: int | None = None
) -> dict[str, str]:
    """What keeps several engines of one machine out of each other's way; what the user has set stays."""
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if machine.gpus:
        size = min(settings.tensor_parallel_size, machine.gpus)
        slots = machine.gpus // size
        first = index % slots * size
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in range(first, first + size))
        sharing = -(-engines // slots)
        if sharing > 1:
            memory = settings.gpu_memory_utilization / sharing
            env["SLOS_GPU_MEMORY_UTILIZATION"] = f"{memory:.3f}"
    else:
        set_by_user = os.environ.get("OMP_NUM_THREADS", "")
        each = threads or (int(set_by_user) if set_by_user.isdigit() else 0) or max(1, (machine.cpus - 1) // engines)
        env["OMP_NUM_THREADS"] = str(each)
        own = share(machine.cpu_ids, index, engines, each)
        if own:
            env["SLOS_ENGINE_CPUS"] = ",".join(str(cpu) for cpu in own)
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        env["TOKENIZERS_PARALLELISM"] = "false"
    ours = {"SLOS_GPU_MEMORY_UTILIZATION"} | ({"OMP_NUM_THREADS"} if threads else set())
    return {name: value for name, value in env.items() if name in ours or name not in os.environ}


def _gpus() -> int:
    try:
        distribution("vllm-cpu")
        return 0
    except PackageNotFoundError:
        pass
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    listed = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)  # noqa: S603 - found above
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0
