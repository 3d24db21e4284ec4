import re
from typing import Any

import httpx
import pytest

from common.bus.memory import MemoryBus
from common.errors import BusUnavailable
from common.messages import Stage
from tests.api.conftest import Api, Serve
from tests.api.faults import FaultyBus
from tests.api.pipeline import DECODE, PREFILL, eventually, worker_state


async def ready(api: Api) -> tuple[int, list[str]]:
    response = await api.client.get("/readyz")
    return response.status_code, response.json()["missing"]


@pytest.fixture
async def up(api: Api) -> Api:
    await wait_for_relay(api)
    return api


async def wait_for_relay(api: Api) -> None:
    await eventually(lambda: bool(api.state.ingress.relay.reading.is_set()))


async def test_it_is_alive_and_ready_with_a_planner_and_a_worker_of_each_kind(serve: Serve) -> None:
    async with serve() as api:
        await wait_for_relay(api)
        assert (await api.client.get("/healthz")).json() == {"status": "ok"}
        assert await ready(api) == (200, [])


@pytest.mark.parametrize(("worker", "missing"), [(PREFILL, "prefill_worker"), (DECODE, "decode_worker")])
async def test_it_is_not_ready_without_a_worker_of_each_kind(up: Api, worker: str, missing: str) -> None:
    await up.bus.leave(worker)
    assert await ready(up) == (503, [missing])


@pytest.mark.parametrize("change", [{"ready": False}, {"known": False}, {"draining": True}, {"may": (Stage.DECODE,)}])
async def test_a_worker_that_can_not_work_does_not_count(up: Api, change: dict[str, Any]) -> None:
    await up.bus.beat(worker_state(PREFILL, Stage.PREFILL, **change), 100.0)
    assert await ready(up) == (503, ["prefill_worker"])


async def test_it_is_not_ready_without_a_planner(up: Api) -> None:
    await up.bus.resign("planner-1")
    assert await ready(up) == (503, ["planner"])


async def test_it_is_not_ready_while_the_queue_is_away_but_alive(serve: Serve) -> None:
    bus = FaultyBus()
    async with serve(bus=bus) as api:
        bus.down = BusUnavailable
        await eventually(lambda: not api.state.ingress.relay.reading.is_set())
        assert (await api.client.get("/healthz")).status_code == 200
        assert await ready(api) == (503, ["relay", "queue", "planner", "prefill_worker", "decode_worker"])
        bus.down = None
        await wait_for_relay(api)
        assert await ready(api) == (200, [])


def value(page: str, start: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(start))


async def test_metrics_count_requests_by_tier(serve: Serve) -> None:
    async with serve(bus=MemoryBus()) as api:
        before = (await api.client.get("/metrics")).text
        await api.client.post("/generate", json={"prompt": "x", "tier": "summarize"})
        after: httpx.Response = await api.client.get("/metrics")
        assert after.headers["content-type"].startswith("text/plain")
        for name in (
            'slos_requests_ended_total{state="done",tier="summarize"}',
            'slos_attainment_total{attained="yes",tier="summarize"}',
            'slos_ttft_seconds_count{kind="achieved",tier="summarize"}',
            'gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="text_completion"',
            "slos_relay_seconds_count",
            'slos_prompt_tokens_total{tier="summarize"}',
            'slos_output_tokens_total{tier="summarize"}',
        ):
            assert value(after.text, name) > value(before, name), name


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_docs_need_nothing_from_elsewhere(api: Api, page: str) -> None:
    text = (await api.client.get(page)).text
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    assert len(links) >= 2
    for link in links:
        assert link.startswith("/"), link
        assert (await api.client.get(link)).status_code == 200


async def test_the_docs_describe_every_route_with_examples(api: Api) -> None:
    assert (await api.client.get("/docs")).status_code == 200
    paths = (await api.client.get("/openapi.json")).json()["paths"]
    assert {"/v1/models", "/requests/{request_id}", "/healthz", "/readyz", "/metrics"} <= set(paths)
    for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert content["examples"]
        assert content["schema"]["properties"]["tier"]


async def test_the_examples_of_the_docs_are_served(api: Api) -> None:
    paths = (await api.client.get("/openapi.json")).json()["paths"]
    for path in ("/generate", "/v1/completions", "/v1/chat/completions"):
        examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for name, example in examples.items():
            response = await api.client.post(path, json=example["value"])
            assert response.status_code == 200, (name, response.text)
