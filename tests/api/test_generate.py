import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.api.conftest import Api, Serve


async def events(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Server-sent events; comments under the name ``comment``."""
    async for block in blocks(response):
        fields = [line.split(":", 1) for line in block.splitlines()]
        yield {name or "comment": value.strip() for name, value in fields}


async def blocks(response: httpx.Response) -> AsyncIterator[str]:
    text = ""
    async for chunk in response.aiter_text():
        text += chunk
        while "\n\n" in text:
            block, _, text = text.partition("\n\n")
            yield block


async def collect(api: Api, body: dict[str, Any], path: str = "/generate") -> list[dict[str, str]]:
    async with api.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, await response.aread()
        return [event async for event in events(response)]


async def test_a_json_answer_carries_text_decision_prediction_usage_and_attainment(api: Api) -> None:
    response = await api.client.post("/generate", json={"prompt": "def add(a, b):", "tier": "code"})

    assert response.status_code == 200, response.text
    body = response.json()
    assert body["text"] == "def add(a, b):"
    assert response.headers["x-request-id"] == body["request_id"]
    assert body["decision"]["verdict"] == "admitted"
    assert body["decision"]["reason"] == "feasible"
    assert body["slo"]["predicted"] == {"ttft_ms": 12.5, "tpot_ms": 3.25}
    assert body["slo"]["achieved"]["ttft_ms"] > 0
    assert body["slo"]["attained"] is True
    count = len(body["token_ids"])
    assert body["usage"] == {"prompt_tokens": count, "completion_tokens": count, "total_tokens": 2 * count}
    assert body["finish_reason"] == "length"


async def test_a_stream_has_a_decision_then_tokens_with_their_positions_then_done(api: Api) -> None:
    received = await collect(api, {"prompt": "def add(a, b):", "stream": True})

    assert "retry" in received[0]
    assert [event["event"] for event in received[1:3]] == ["decision", "token"]
    tokens = [json.loads(event["data"]) for event in received if event.get("event") == "token"]
    assert "".join(token["text"] for token in tokens) == "def add(a, b):"
    assert [token["position"] for token in tokens] == list(range(len(tokens)))
    assert [event["id"] for event in received if event.get("event") == "token"] == [
        str(position + 1) for position in range(len(tokens))
    ]
    done = json.loads(received[-1]["data"])
    assert received[-1]["event"] == "done"
    assert done["slo"]["attained"] is True
    assert done["usage"]["completion_tokens"] == len(tokens)


async def test_token_ids_are_accepted_in_place_of_text(serve: Serve) -> None:
    async with serve() as api:
        response = await api.client.post("/generate", json={"prompt_token_ids": [40, 41, 42], "max_tokens": 2})

        assert response.json()["token_ids"] == [40, 41]
        assert api.pipeline.works[0].request.prompt == (40, 41, 42)
