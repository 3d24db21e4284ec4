import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from api.context import Context
from common.settings import Settings
from tests.api.conftest import Api, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret that must not come back"
LIMIT = 4096
"""Model length."""

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "body"),
    "two prompts": ({"prompt": SECRET, "prompt_token_ids": [1]}, "body"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "no token ids": ({"prompt_token_ids": []}, "prompt_token_ids"),
    "token id out of the vocabulary": ({"prompt_token_ids": [1, 2048]}, "prompt_token_ids"),
    "token id beyond 32 bits": ({"prompt_token_ids": [2**40]}, "prompt_token_ids[0]"),
    "negative token id": ({"prompt_token_ids": [-1]}, "prompt_token_ids[0]"),
    "token id that is text": ({"prompt_token_ids": ["1"]}, "prompt_token_ids[0]"),
    "token id that is a boolean": ({"prompt_token_ids": [True]}, "prompt_token_ids[0]"),
    "prompt over the model length": ({"prompt_token_ids": [40] * LIMIT}, "prompt_token_ids"),
    "text far over the model length": ({"prompt": "x " * 200_000}, "prompt"),
    "output over the model length": ({"prompt_token_ids": [40] * 4000, "max_tokens": 97}, "max_tokens"),
    "no output": ({"prompt": SECRET, "max_tokens": 0}, "max_tokens"),
    "fractional max_tokens": ({"prompt": SECRET, "max_tokens": 1.5}, "max_tokens"),
    "huge max_tokens": ({"prompt": SECRET, "max_tokens": 10**30}, "max_tokens"),
    "negative SLO": ({"prompt": SECRET, "slo": {"ttft_ms": -1, "tpot_ms": 5}}, "slo.ttft_ms"),
    "zero SLO": ({"prompt": SECRET, "slo": {"ttft_ms": 1, "tpot_ms": 0}}, "slo.tpot_ms"),
    "endless SLO": ({"prompt": SECRET, "slo": {"ttft_ms": 1e300, "tpot_ms": 1}}, "slo.ttft_ms"),
    "SLO without TPOT": ({"prompt": SECRET, "slo": {"ttft_ms": 1}}, "slo.tpot_ms"),
    "SLO with two TTFTs": ({"prompt": SECRET, "slo": {"ttft_ms": 1, "ttft_slowdown": 2, "tpot_ms": 1}}, "slo"),
    "SLO without TTFT": ({"prompt": SECRET, "slo": {"tpot_ms": 1}}, "slo"),
    "SLO with an unknown field": ({"prompt": SECRET, "slo": {"ttft_ms": 1, "tpot_ms": 1, "itl": 1}}, "slo.itl"),
    "unknown tier": ({"prompt": SECRET, "tier": "gold"}, "tier"),
    "tier and SLO": ({"prompt": SECRET, "tier": "chat", "slo": {"ttft_ms": 1, "tpot_ms": 1}}, "body"),
    "unknown field": ({"prompt": SECRET, "max_token": 1}, "max_token"),
    "text for a number": ({"prompt": SECRET, "temperature": "hot"}, "temperature"),
    "negative temperature": ({"prompt": SECRET, "temperature": -1}, "temperature"),
    "top_p of zero": ({"prompt": SECRET, "top_p": 0}, "top_p"),
    "too many stops": ({"prompt": SECRET, "stop": ["a"] * 17}, "stop"),
    "a stop that is a number": ({"prompt": SECRET, "stop": 1}, "stop"),
    "a stop that is a list of numbers": ({"prompt": SECRET, "stop": [1]}, "stop[0]"),
    "a stop of nothing": ({"prompt": SECRET, "stop": ""}, "stop"),
    "an empty stop": ({"prompt": SECRET, "stop": [""]}, "stop[0]"),
    "a stop token out of the vocabulary": ({"prompt": SECRET, "stop_token_ids": [2048]}, "stop_token_ids"),
    "min_tokens over max_tokens": ({"prompt": SECRET, "max_tokens": 1, "min_tokens": 2}, "min_tokens"),
    "unknown overload": ({"prompt": SECRET, "on_overload": "panic"}, "on_overload"),
    "seed beyond 64 bits": ({"prompt": SECRET, "seed": 2**64}, "seed"),
    "priority out of bounds": ({"prompt": SECRET, "priority": 1000}, "priority"),
}


def check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert SECRET not in response.text
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= set(body)
    return body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def idle(settings: Settings, context: Context) -> AsyncIterator[Api]:
    """An api in front of which nothing may be queued."""
    async with serving(settings, context) as api:
        yield api
        assert api.pipeline.works == []


async def test_each_bad_field_is_named_and_nothing_is_queued(idle: Api) -> None:
    for name, (body, field) in BAD.items():
        response = await idle.client.post("/generate", json=body)
        problem = check_problem(response, 422)
        assert [error["field"] for error in problem["errors"]] == [field], name


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        ({"prompt_token_ids": [40] * LIMIT}, LIMIT - 1),
        ({"prompt_token_ids": [40] * 4000, "max_tokens": 97}, 96),
        ({"prompt_token_ids": [2048]}, 2047),
        ({"prompt": "x", "max_tokens": 0}, 1),
        ({"prompt": "x", "stop": ["a"] * 17}, 16),
    ],
)
async def test_a_bound_that_was_passed_is_told(idle: Api, body: dict[str, Any], bound: int) -> None:
    problem = check_problem(await idle.client.post("/generate", json=body), 422)
    assert problem["errors"][0]["bound"] == bound


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"prompt=x",
        b'{"prompt": "x"',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 100_000,
        b'{"slo": ' * 5_000,
        json.dumps({"prompt": SECRET}).encode("utf-16"),
    ],
)
async def test_what_is_no_json_is_refused(idle: Api, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    check_problem(await idle.client.post("/generate", content=content, headers=headers), 400)


@pytest.mark.parametrize("content", [b"[]", b"null", b'"text"', b"NaN", b"1"])
async def test_json_that_is_no_object_is_refused(idle: Api, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = await idle.client.post("/generate", content=content, headers=headers)
    assert response.status_code in (400, 422)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
async def test_an_slo_must_be_finite(idle: Api, number: bytes) -> None:
    content = b'{"prompt": "x", "slo": {"ttft_ms": %s, "tpot_ms": 1}}' % number
    headers = {"content-type": "application/json"}
    problem = check_problem(await idle.client.post("/generate", content=content, headers=headers), 422)
    assert problem["errors"][0]["field"] == "slo.ttft_ms"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_another_content_type_is_refused(idle: Api, kind: str) -> None:
    response = await idle.client.post("/generate", content=b'{"prompt": "x"}', headers={"content-type": kind})
    check_problem(response, 415)


async def test_a_missing_content_type_is_refused(idle: Api) -> None:
    check_problem(await idle.client.post("/generate", content=b'{"prompt": "x"}'), 415)


async def test_a_ten_megabyte_body_is_refused(idle: Api) -> None:
    response = await idle.client.post("/generate", json={"prompt": "x" * 10_000_000})
    problem = check_problem(response, 413)
    assert problem["errors"][0]["bound"] == idle.state.settings.max_body_bytes


async def test_a_chunked_body_is_refused_once_it_is_too_large(idle: Api) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 100_000

    headers = {"content-type": "application/json"}
    check_problem(await idle.client.post("/generate", content=endless(), headers=headers), 413)


async def test_a_body_that_is_refused_by_its_length_is_not_read(idle: Api) -> None:
    port = int(idle.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n"
    writer.write(head.encode())
    assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("headers", "body", "field"),
    [
        ({"X-SLO-Tier": "gold"}, {}, "x-slo-tier"),
        ({"X-SLO-TTFT-Ms": "nan", "X-SLO-TPOT-Ms": "5"}, {}, "x-slo-ttft-ms"),
        ({"X-SLO-TTFT-Ms": "5"}, {}, "x-slo-tpot-ms"),
        ({"X-SLO-TPOT-Ms": "-5", "X-SLO-TTFT-Ms": "5"}, {}, "x-slo-tpot-ms"),
        ({"X-SLO-Tier": "chat"}, {"tier": "chat"}, "tier"),
        ({"X-SLO-Tier": "chat", "X-SLO-TTFT-Ms": "5", "X-SLO-TPOT-Ms": "5"}, {}, "x-slo-tier"),
    ],
)
async def test_bad_slo_headers_are_named(idle: Api, headers: dict[str, str], body: dict[str, Any], field: str) -> None:
    response = await idle.client.post("/generate", json={"prompt": SECRET, **body}, headers=headers)
    assert check_problem(response, 422)["errors"][0]["field"] == field


async def test_unknown_paths_and_methods_are_problems_too(idle: Api) -> None:
    check_problem(await idle.client.get("/nowhere"), 404)
    check_problem(await idle.client.get("/generate"), 405)


async def test_the_name_of_an_unknown_field_is_cut(idle: Api) -> None:
    response = await idle.client.post("/generate", json={"prompt": "x", "y" * 5000: 1})
    assert len(check_problem(response, 422)["errors"][0]["field"]) <= 64


async def test_prompts_are_not_logged(idle: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        for body, _ in BAD.values():
            await idle.client.post("/generate", json=body)
    assert SECRET not in caplog.text
