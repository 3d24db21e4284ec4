import asyncio
import pickle
from pathlib import Path

import pytest
from redis import Redis

from common.celery_app import BATCHES, ROUTINE, make_app
from common.keys import Keys
from common.settings import Settings
from tests.common.tasks.celery_process import celery, left_in

WORKER = ("worker", "--pool", "prefork", "--without-gossip", "--without-mingle")


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_no_task_may_run_as_long_as_its_message_stays_invisible() -> None:
    conf = make_app(Settings(batch_slice_s=300)).conf
    limits = conf.task_soft_time_limit, conf.task_time_limit, conf.broker_transport_options["visibility_timeout"]
    assert 300 < limits[0] < limits[1] < limits[2]


def test_a_task_that_its_worker_did_not_finish_comes_back() -> None:
    conf = make_app(Settings()).conf
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1


def test_every_scheduled_task_exists_and_expires_if_no_worker_takes_it() -> None:
    app = make_app(Settings())
    app.loader.import_default_modules()
    for entry in app.conf.beat_schedule.values():
        assert entry["task"] in app.tasks
        assert entry["options"]["expires"] >= entry["schedule"]


def test_a_redis_with_tls_has_its_certificate_checked() -> None:
    assert make_app(Settings(redis_url="rediss://example:6380/0")).conf.broker_use_ssl["ssl_cert_reqs"] == 2


@pytest.mark.process
async def test_a_worker_refuses_pickle_answers_inspect_and_ends_on_sigterm(redis_url: str, tmp_path: Path) -> None:
    app = make_app(Settings(redis_url=redis_url))
    touched = tmp_path / "touched"
    with app.connection_for_write() as connection:
        body: tuple[object, ...] = ((), {}, {"evil": Touch(touched)})
        headers = {"task": "sweep_offline", "id": "1", "lang": "py", "argsrepr": "", "kwargsrepr": ""}
        producer = connection.Producer()
        producer.publish(
            pickle.dumps(body),
            routing_key=ROUTINE,
            exchange="",
            headers=headers,
            content_type="application/x-python-serialize",
            content_encoding="binary",
        )
    app.send_task("sweep_offline", serializer="msgpack")
    app.send_task("sweep_offline", serializer="json")
    async with celery(*WORKER, cwd=tmp_path, redis_url=redis_url, celery_concurrency=1) as worker:
        await worker.said("Refusing to deserialize untrusted content of type pickle")
        await worker.said("offline work forgotten")
        replies = await asyncio.to_thread(lambda: app.control.inspect(timeout=10, limit=1).conf())
        assert next(iter(replies.values()))["accept_content"] == ["json", "msgpack"]
        assert await worker.end() == 0
    done = [entry for entry in worker.entries if entry["event"] == "offline work forgotten"]
    assert len(done) == 2
    assert not touched.exists()
    with Redis.from_url(redis_url, decode_responses=True) as client:
        assert all(str(key).startswith(Keys().celery) for key in client.keys("*"))
    assert left_in(tmp_path) == []


@pytest.mark.process
async def test_beat_sends_what_is_due_keeps_no_file_and_ends_on_sigterm(redis_url: str, tmp_path: Path) -> None:
    async with celery("beat", cwd=tmp_path, redis_url=redis_url, refit_s=0.2) as beat:
        client = Redis.from_url(redis_url)
        async with asyncio.timeout(30):
            while not client.llen(Keys().celery + ROUTINE):
                await asyncio.sleep(0.02)
        client.close()
        assert await beat.end() == 0
    assert left_in(tmp_path) == []


def test_batches_have_a_queue_of_their_own() -> None:
    router = make_app(Settings()).amqp.router
    assert router.route({}, "run_batch")["queue"].name == BATCHES
    assert router.route({}, "resume_batches")["queue"].name == ROUTINE
