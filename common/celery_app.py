"""Background work: the Celery app of ``celery -A common.celery_app worker`` and ``... beat``. Never the online path.

Delivery is at least once (late acks, lost workers' tasks come back), so every task is idempotent. Messages are JSON
or msgpack; a pickled one is refused unread. Beat keeps no file: its intervals are short, and nothing depends on when
a task last ran.
"""

import multiprocessing
import ssl
from typing import Any

from celery import Celery, signals
from kombu import Queue

from common.keys import Keys
from common.process import instance_id
from common.settings import Settings, load_settings
from common.tasks.metrics import serve_metrics
from common.telemetry.logs import setup_logging
from common.telemetry.tracing import setup_tracing, shutdown_tracing

ROUTINE, BATCHES = "routine", "batches"
SERVICE = "celery"
TASK_MODULES = ("common.tasks.batches", "common.tasks.calibration", "common.tasks.housekeeping")
SLACK_S = 120
"""What a task may take on top of one slice, to read, validate and write whole files."""

_stopping = multiprocessing.Event()


def make_app(settings: Settings) -> Celery:
    """A Celery app that sends and, as a worker, runs this project's tasks."""
    app = Celery("slos", include=TASK_MODULES, set_as_current=False)
    app.conf.update(_config(settings))
    return app


def stopping() -> bool:
    """Whether this worker was told to end: a long task should come to a stop. True in pool processes too."""
    return _stopping.is_set()


def _config(settings: Settings) -> dict[str, Any]:
    soft_limit_s = int(settings.batch_slice_s) + SLACK_S
    return {
        "broker_url": settings.redis_url,
        "broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED} if settings.redis_url.startswith("rediss") else None,
        "broker_transport_options": {
            "global_keyprefix": Keys(settings.namespace).celery,
            "visibility_timeout": soft_limit_s + 2 * SLACK_S,  # above the hard limit: no task runs this long
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json", "msgpack"],
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "worker_max_tasks_per_child": 500,
        "worker_concurrency": settings.celery_concurrency,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
        "task_soft_time_limit": soft_limit_s,
        "task_time_limit": soft_limit_s + SLACK_S // 2,
        "task_queues": tuple(Queue(name, routing_key=name) for name in (ROUTINE, BATCHES)),
        "task_default_queue": ROUTINE,
        "task_routes": {"run_batch": {"queue": BATCHES}},
        "task_create_missing_queues": False,
        "enable_utc": True,
        "timezone": "UTC",
        "beat_scheduler": "celery.beat:Scheduler",
        "beat_schedule": _schedule(settings),
    }


def _schedule(settings: Settings) -> dict[str, Any]:
    every = {
        "resume_batches": settings.batch_lock_s,
        "refit_latency": settings.refit_s,
        "sweep_requests": min(60.0, settings.retention_s),
        "sweep_offline": min(300.0, settings.file_retention_s),
        "report_dead_letters": 60.0,
    }
    return {
        # a task that no worker takes must not pile up: the next one does the same work
        name: {"task": name, "schedule": every_s, "options": {"expires": max(60.0, 2 * every_s)}}
        for name, every_s in every.items()
    }


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _logs(**_: Any) -> None:
    setup_logging(settings, SERVICE)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**_: Any) -> None:
    if settings.celery_metrics_port:
        serve_metrics(settings)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_process(**_: Any) -> None:
    setup_tracing(settings, SERVICE, instance_id(SERVICE))


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _end_process(**_: Any) -> None:
    shutdown_tracing()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _shut_down(**_: Any) -> None:
    _stopping.set()


settings = load_settings()
app = make_app(settings)
