from pathlib import Path
from typing import Any

import pytest
import yaml

from common.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PIPELINE = ("api", "admission", "prefill_worker", "decode_worker", "celery_worker", "celery_beat")
GPU = ("prefill_worker_gpu", "decode_worker_gpu")


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_all_services_are_there() -> None:
    assert set(SERVICES) == {"redis", "jaeger", *PIPELINE, *GPU}


def test_only_the_api_and_jaeger_are_published_and_on_loopback_by_default() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "api": ["${SLOS_PUBLISH:-127.0.0.1}:${SLOS_PORT:-8000}:8000"],
        "jaeger": ["${SLOS_PUBLISH:-127.0.0.1}:${SLOS_JAEGER_PORT:-16686}:16686"],
    }


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("prefill_worker", "drain_s"),
        ("decode_worker_gpu", "drain_s"),
        ("api", "shutdown_s"),
        ("celery_worker", "batch_slice_s"),
    ],
)
def test_grace_periods_are_longer_than_the_drain(name: str, field: str) -> None:
    service = SERVICES[name]
    drain_s = float(service["environment"].get(f"SLOS_{field.upper()}", Settings.model_fields[field].default))
    assert seconds(service["stop_grace_period"]) > drain_s


@pytest.mark.parametrize("name", [*PIPELINE, *GPU])
def test_our_services_have_no_way_to_change_themselves(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", [*PIPELINE, *GPU])
def test_our_services_start_after_redis_and_so_stop_before_it(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", [*PIPELINE, *GPU])
def test_the_variables_of_a_service_are_settings(name: str) -> None:
    known = {f"SLOS_{field.upper()}" for field in Settings.model_fields}
    assert {variable for variable in SERVICES[name]["environment"] if variable.startswith("SLOS_")} <= known


@pytest.mark.parametrize("name", ["prefill_worker", "decode_worker", *GPU])
def test_nothing_keeps_a_worker_from_being_scaled(name: str) -> None:
    assert not {"container_name", "ports", "hostname"} & SERVICES[name].keys()


def test_the_gpu_profile_reserves_a_device_and_replaces_the_cpu_workers() -> None:
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["cpu"]} == {
        "prefill_worker",
        "decode_worker",
    }
    for name in GPU:
        assert SERVICES[name]["profiles"] == ["gpu"]
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["capabilities"], device["count"]) == (["gpu"], 1)
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()


def test_redis_is_durable_and_refuses_rather_than_evicts() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes --appendfsync everysec --maxmemory-policy noeviction" in command
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_no_secret_is_written_down() -> None:
    lines = [line for file in (".env", ".env.example") for line in (ROOT / file).read_text().splitlines()]
    secret = [line for line in lines if line.startswith(("SLOS_API_KEYS=", "HF_TOKEN=", "SLOS_REDIS_PASSWORD="))]
    assert all(line.endswith("=") for line in secret)
    assert len(secret) == 3


def test_the_images_do_not_run_as_root() -> None:
    stages = (ROOT / "deploy/docker/Dockerfile").read_text().split("\nFROM ")
    targets = [stage for stage in stages if stage.split("\n")[0].endswith(("AS base", "AS worker", "AS worker-gpu"))]
    assert len(targets) == 3
    assert all(stage.rstrip().splitlines()[-1] == "USER slos" or "\nUSER slos\n" in stage for stage in targets)
