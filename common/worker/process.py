"""The process of a worker: settings, engine, queue and health server around a :class:`WorkerHost`."""

import asyncio

from common.bus.redis import RedisBus
from common.calibration import RedisProfiles
from common.engine.factory import make_engine
from common.engine.profile import Tick, obtain
from common.health import HealthServer
from common.messages import Stage
from common.process import settle
from common.settings import Settings
from common.telemetry.logs import get_logger
from common.worker.host import WorkerHost, stages

READS = (
    "redis_url redis_socket namespace model engine dtype max_model_len max_num_seqs max_num_batched_tokens block_size "
    "kv_cache_gib gpu_memory_utilization tensor_parallel_size trust_remote_code kv_lease_s profile_dir worker_name "
    "prefill_may decode_may worker_host worker_port nixl_host frame_ms heartbeat_s worker_dead_s drain_s "
    "log_format log_level trace_ratio"
).split()
"""Settings that a worker reads."""

PROGRESS = 0.2
"""Share of a measurement after which it is logged again."""

log = get_logger(__name__)


def progress() -> Tick:
    """Logs how much of a measurement is done, by fifths: the first start on a machine takes longer than others."""
    told = 0.0

    def tick(share: float) -> None:
        nonlocal told
        if share >= told + PROGRESS or share >= 1 > told:
            told = share
            log.info("measuring how long batches take", done=f"{share:.0%}")

    return tick


async def run_worker(prefers: Stage, settings: Settings, stop: asyncio.Event) -> None:
    """Run one worker until ``stop``; raises EngineDead or WorkerLost when only a new process can go on."""
    may = stages(settings.prefill_may if prefers is Stage.PREFILL else settings.decode_may)
    bus = RedisBus.connect(settings)
    profiles = RedisProfiles(settings)
    measure = (lambda engine, facts: obtain(engine, settings, facts, progress())) if settings.engine == "vllm" else None
    host = WorkerHost(bus, make_engine(settings), settings, prefers, may, profiles, measure)
    settle()
    try:
        async with HealthServer(settings.worker_host, settings.worker_port, host.readiness) as health:
            host.url = health.url
            await host.run(stop)
    finally:
        await profiles.close()
        await bus.close()
