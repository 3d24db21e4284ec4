"""One pipeline of real processes on real vLLM engines for all end-to-end tests, and the truth to compare with."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.cluster import Cluster, start_pipeline
from bench.plain_engine import PlainJob, truth
from bench.tiny_model import TARGET
from common.bus.redis import RedisBus
from common.settings import Settings
from tests.otlp_receiver import OtlpReceiver

MODEL = str(TARGET)
LENGTHS = [5, 6, 15, 16, 17, 31, 32, 33, 64, 100, 128, 160, 255, 256, 400, 512, 777, 1024, 1500, 2000]
OUTPUT_TOKENS = 24
LONG_OUTPUT_TOKENS = 600


@dataclass(frozen=True)
class Truth:
    """Greedy answers of one plain engine: one for each prompt, and a long one."""

    prompts: list[list[int]]
    answers: list[list[int]]
    long_prompt: list[int]
    long_answer: list[int]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    draw = random.Random(7)
    prompts = [[draw.randrange(16, 2048) for _ in range(length)] for length in LENGTHS]
    long_prompt = [draw.randrange(16, 2048) for _ in range(300)]
    jobs = [PlainJob(prompt, OUTPUT_TOKENS) for prompt in prompts]
    jobs.append(PlainJob(long_prompt, LONG_OUTPUT_TOKENS))
    answers = truth(MODEL, jobs, tmp_path_factory.mktemp("truth") / "answers.json")
    return Truth(prompts, answers[:-1], long_prompt, answers[-1])


@pytest.fixture(scope="session")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, receiver: OtlpReceiver) -> Iterator[Cluster]:
    """One prefill and one decode worker; a test that kills one starts another."""
    environment = {
        "SLOS_MODEL": MODEL,
        "SLOS_TPOT_SCALE": "10",
        "SLOS_ELASTIC": "false",
        "SLOS_HEARTBEAT_S": "0.1",
        "SLOS_WORKER_DEAD_S": "2",
        "SLOS_API_KEYS": "tester=e2e-secret-key",
        "SLOS_PROFILE_DIR": str(Path(".cache/profiles").resolve()),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
    }
    with Cluster(tmp_path_factory.mktemp("cluster"), environment) as running:
        start_pipeline(running)
        asyncio.run(running.ready())
        yield running


@pytest.fixture
async def bus(cluster: Cluster) -> AsyncIterator[RedisBus]:
    connected = RedisBus.connect(Settings(redis_url=cluster.redis.url))
    yield connected
    await connected.close()
