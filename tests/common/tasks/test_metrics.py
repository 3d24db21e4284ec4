import httpx
from prometheus_client import CollectorRegistry, generate_latest
from redis import Redis

from common.keys import Keys
from common.settings import Settings
from common.tasks.metrics import BackgroundMetrics, serve_metrics


def test_dead_letters_by_reason_and_open_batches_are_read_when_asked_for(redis_url: str) -> None:
    registry = CollectorRegistry()
    port = serve_metrics(Settings(redis_url=redis_url), registry)
    with Redis.from_url(redis_url) as client:
        for reason in ("poison", "poison", "worker_died"):
            client.xadd(Keys().dead_letters, {"id": "r", "reason": reason})
        client.sadd(Keys().open_batches, "batch_1")
    page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'slos_dead_letters_kept{reason="poison"} 2.0' in page
    assert 'slos_dead_letters_kept{reason="worker_died"} 1.0' in page
    assert "slos_open_batches 1.0" in page


def test_without_redis_there_are_no_such_metrics_and_no_failure() -> None:
    registry = CollectorRegistry()
    registry.register(BackgroundMetrics(Settings(redis_url="redis://127.0.0.1:1/0")))
    assert generate_latest(registry) == b""
