"""The HTTP ingress: ``POST /generate``, OpenAI-compatible routes, ``/docs``, ``/readyz`` and ``/metrics``."""

import asyncio

from api.app import create_app
from api.context import load_context
from api.server import Server
from common.bus.redis import RedisBus
from common.process import run, settle
from common.settings import Settings
from common.telemetry.logs import get_logger

READS = frozenset(
    (
        *("redis_url", "redis_socket", "namespace", "model", "served_model_name", "max_model_len", "trust_remote_code"),
        *("thinking_start", "thinking_end"),
        *("tiers_file", "tpot_scale", "host", "port", "api_keys", "max_body_bytes", "keep_alive_s", "shutdown_s"),
        "rehearsals",
        *("file_retention_s", "max_file_bytes", "log_format", "log_level", "trace_ratio"),
        *("trace_buffer_requests", "trace_buffer_s"),
    )
)

log = get_logger(__name__)


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until told to stop, then let open answers end."""
    context = await asyncio.to_thread(load_context, settings)
    bus = RedisBus.connect(settings)
    try:
        server = Server(create_app(settings, bus, context), settings.host, settings.port)
        await server.open()
        settle()
        log.info("serving", url=server.url, docs=f"{server.url}/docs", model=context.facts.served_name)
        await server.wait(stop)
        await server.drain(settings.shutdown_s)
    finally:
        await bus.close()


if __name__ == "__main__":
    run("api", main, about=__doc__, reads=READS)
