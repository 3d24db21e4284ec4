"""Plans: decides which request is admitted, deferred or rejected, and where and when it runs.

One process leads and plans; any number of others stand by and take over within seconds.
"""

import asyncio

from admission.service import AdmissionService
from common.bus.redis import RedisBus
from common.health import HealthServer
from common.process import instance_id, run, settle
from common.settings import Settings
from common.tiers import load_tiers

READS = (
    "redis_url redis_socket namespace policy hold_ms plan_margin best_effort_share elastic plan_log window replan_ms "
    "leader_ttl_s hop_ms worker_dead_s admission_host admission_port "
    "tiers_file tpot_scale log_format log_level trace_ratio"
).split()


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Run until SIGTERM, then give leadership back."""
    bus = RedisBus.connect(settings)
    tiers = load_tiers(settings.tiers_file, settings.tpot_scale)
    service = AdmissionService(bus, settings, tiers, instance_id("admission"), compiled=settle)
    try:
        async with HealthServer(settings.admission_host, settings.admission_port, service.readiness):
            await service.run(stop)
    finally:
        await bus.close()


if __name__ == "__main__":
    run("admission", main, about=__doc__, reads=READS)
