"""The processes of the embedded pipeline: their commands, environments, order and drain times."""

import asyncio
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from common.cli.engines import Machine, engine_environment
from common.cli.supervisor import Child
from common.redis_server import command, find_redis, socket_in
from common.settings import Settings

CELERY = ("celery", "-q", "-A", "common.celery_app")
MODULES: Mapping[str, tuple[str, ...]] = {
    "decode_worker": ("decode_worker",),
    "prefill_worker": ("prefill_worker",),
    "admission": ("admission",),
    "api": ("api",),
    "celery_worker": (*CELERY, "worker", "--loglevel", "INFO"),
    "celery_beat": (*CELERY, "beat", "--loglevel", "INFO"),
}
"""What follows ``python -m`` for each kind of process; the Procfile says the same."""

STAGES = ("redis", "decode_worker", "prefill_worker", "admission", "api", "celery_worker", "celery_beat")
"""Order of the starts. Drains go the other way: no new work, open answers, the planner, then the workers."""

ENGINES = ("prefill_worker", "decode_worker")
REDIS_START_S = 30.0
_MARGIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How many of what to run."""

    prefill: int = 1
    decode: int = 1
    celery: bool = True
    redis_url: str | None = None
    redis_port: int = 0
    threads: int | None = None


def pipeline(plan: Plan, settings: Settings, machine: Machine, data: Path) -> tuple[Sequence[Child], str]:
    """The children to supervise, and the URL of the Redis that they use."""
    children = []
    redis_url = plan.redis_url
    if redis_url is None:
        port = plan.redis_port or free_port()
        redis_url = f"redis://127.0.0.1:{port}/0"
        children.append(_redis(data / "redis", port, redis_url))
    common = {"SLOS_REDIS_URL": redis_url, **_paths(settings)}
    own_socket = socket_in(data / "redis") if plan.redis_url is None else None
    if own_socket is not None:
        common["SLOS_REDIS_SOCKET"] = str(own_socket)
    counts = {"prefill_worker": plan.prefill, "decode_worker": plan.decode}
    if not plan.celery:
        counts |= {"celery_worker": 0, "celery_beat": 0}
    engines = plan.prefill + plan.decode
    engine = 0
    for kind in STAGES[1:]:
        count = counts.get(kind, 1)
        for number in range(1, count + 1):
            env = dict(common)
            if kind in ENGINES:
                env |= engine_environment(engine, engines, machine, settings, plan.threads)
                env["SLOS_WORKER_NAME"] = f"{kind.removesuffix('_worker')}-{number}"
                engine += 1
            children.append(
                Child(
                    name=f"{kind}.{number}" if count > 1 else kind,
                    argv=(sys.executable, "-P", "-m", *MODULES[kind]),
                    env=env,
                    stage=STAGES.index(kind),
                    grace_s=_grace_s(kind, settings),
                )
            )
    return children, redis_url


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Whether a port can be bound now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _paths(settings: Settings) -> dict[str, str]:
    """The user's own relative paths, made absolute: children run elsewhere, where the default model is found."""
    paths = {}
    for field in ("model", "draft_model", "tiers_file", "profile_dir"):
        value = getattr(settings, field)
        chosen = field in settings.model_fields_set
        if value is not None and chosen and not Path(value).is_absolute() and Path(value).exists():
            paths[f"SLOS_{field.upper()}"] = str(Path(value).resolve())
    return paths


def _redis(folder: Path, port: int, url: str) -> Child:
    folder.mkdir(parents=True, exist_ok=True)
    argv = (*command(find_redis(), folder, port), "--loglevel", "warning")
    return Child("redis", argv, stage=0, grace_s=20.0, ready=lambda: _answers(url))


async def _answers(url: str) -> None:
    """Return once Redis has loaded its data; raises TimeoutError."""
    async with asyncio.timeout(REDIS_START_S), Redis.from_url(url) as client:
        while True:
            try:
                await client.ping()
                return
            except RedisError:
                await asyncio.sleep(0.05)


def _grace_s(kind: str, settings: Settings) -> float:
    drain_s = {
        "prefill_worker": settings.drain_s,
        "decode_worker": settings.drain_s,
        "api": settings.shutdown_s,
        "celery_worker": settings.batch_slice_s,
    }
    return drain_s.get(kind, 0.0) + _MARGIN_S
