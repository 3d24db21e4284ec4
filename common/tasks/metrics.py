"""Metrics of background work, read from Redis when they are asked for: tasks run in processes that nobody scrapes."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError

from common.keys import Keys
from common.settings import Settings

LATEST = 1000


class BackgroundMetrics(Collector):
    """Dead letters by reason and open batches; nothing while Redis does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._redis: Any = Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=2)
        self._keys = Keys(settings.namespace)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See prometheus_client."""
        try:
            letters = self._redis.xrevrange(self._keys.dead_letters, count=LATEST)
            open_batches = self._redis.scard(self._keys.open_batches)
        except RedisError:
            return
        name, text = "slos_dead_letters_kept", f"The latest {LATEST} requests that were given up, by reason."
        by_reason = GaugeMetricFamily(name, text, labels=["reason"])
        for reason, count in Counter(fields.get(b"reason", b"").decode() for _, fields in letters).items():
            by_reason.add_metric([reason], count)
        yield by_reason
        yield GaugeMetricFamily("slos_open_batches", "Offline batches that have not ended.", value=open_batches)


def serve_metrics(settings: Settings, registry: CollectorRegistry = REGISTRY) -> int:
    """Serve them on ``settings.celery_metrics_port`` of the workers' address, and return the port."""
    registry.register(BackgroundMetrics(settings))
    server, _ = start_http_server(settings.celery_metrics_port, settings.worker_host, registry)
    return int(server.server_port)
