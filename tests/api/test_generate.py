import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.delivery import Piece
from api.generate import _token
from api.sse import event
from common.bus.interface import Claim
from common.messages import Decision
from tests.api.conftest import Api, Serve
from tests.api.pipeline import admitted, decision, deferred, eventually


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


async def test_an_idle_stream_is_kept_alive_by_comments(serve: Serve) -> None:
    async with serve(decide=deferred, keep_alive_s=0.05) as api:
        async with api.client.stream("POST", "/generate", json={"prompt": "x", "stream": True}) as response:
            received = events(response)
            names = [(await anext(received)).get("event", "comment") for _ in range(4)]
        assert names == ["comment", "decision", "comment", "comment"]


async def test_a_stream_begins_after_a_keep_alive_period_without_any_news(serve: Serve) -> None:
    async with serve(keep_alive_s=0.05) as api:
        await api.bus.resign("planner-1")
        await api.bus.lead("nobody", 3600.0)  # the pipeline's planner is fenced off
        async with api.client.stream("POST", "/generate", json={"prompt": "x", "stream": True}) as response:
            assert response.status_code == 200
            assert [event.get("comment") async for event in first(events(response), 2)][1] == "keep-alive"


async def first(events: AsyncIterator[dict[str, str]], count: int) -> AsyncIterator[dict[str, str]]:
    for _ in range(count):
        yield await anext(events)


async def test_a_deferred_request_that_is_promoted_tells_both_decisions(serve: Serve) -> None:
    decided: list[Claim] = []

    def decide(claim: Claim) -> Decision:
        decided.append(claim)
        return deferred(claim)

    async with serve(decide=decide) as api:
        stream = asyncio.create_task(collect(api, {"prompt": "x", "stream": True}))
        await eventually(lambda: bool(decided))
        api.pipeline.decide = admitted
        await api.pipeline.decided(decided[0])
        received = await stream
        verdicts = [json.loads(e["data"])["decision"]["verdict"] for e in received if e.get("event") == "decision"]
        assert verdicts[-1] == "admitted"
        assert received[-1]["event"] == "done"


@pytest.mark.parametrize(("ttft_ms", "attained"), [(60_000.0, True), (1e-6, False)])
async def test_attainment_is_judged_by_what_the_client_got(serve: Serve, ttft_ms: float, attained: bool) -> None:
    async with serve(decide=lambda claim: decision(ttft_ms=ttft_ms)) as api:
        body = (await api.client.post("/generate", json={"prompt": "x y z"})).json()
        assert body["slo"]["attained"] is attained


async def test_best_effort_is_neither_met_nor_missed(api: Api) -> None:
    body = (await api.client.post("/generate", json={"prompt": "x", "tier": "batch"})).json()
    assert body["slo"]["attained"] is None


async def test_many_streams_at_once_get_their_own_tokens(api: Api) -> None:
    prompts = [[40 + index, 41 + index, 42 + index] for index in range(40)]
    answers = await asyncio.gather(*(collect(api, {"prompt_token_ids": prompt, "stream": True}) for prompt in prompts))
    for prompt, received in zip(prompts, answers, strict=True):
        tokens = [json.loads(event["data"])["token_ids"] for event in received if event.get("event") == "token"]
        assert [token for part in tokens for token in part] == prompt


async def test_a_reasoning_answer_reports_each_stage_on_its_own(serve: Serve) -> None:
    prompt = [40, 41, 42, 43, 44, 45, 46]
    slo = {"ttft_ms": 60_000, "tpot_ms": 60_000, "thinking_tpot_ms": 30_000}
    body = {"prompt_token_ids": prompt, "slo": slo, "thinking": {"start_token_id": 40, "end_token_id": 43}}
    async with serve(decide=lambda _claim: decision(thinking_tpot_ms=30_000.0)) as api:
        answer = (await api.client.post("/generate", json=body)).json()
        record = (await api.client.get(f"/requests/{answer['request_id']}")).json()
    achieved = answer["slo"]["achieved"]
    assert achieved["thinking_tokens"] == 4
    assert achieved["thinking_tpot_ms"] is not None
    assert achieved["tpot_ms"] is not None
    assert record["objective"]["thinking_tpot_ms"] == answer["slo"]["objective"]["thinking_tpot_ms"] == 30_000.0


@pytest.mark.parametrize("text", ["", "plain", 'a "quote" \\ and\nlines', "\x00\u2028 é 😀"])
def test_a_token_s_event_is_what_every_event_is(text: str) -> None:
    piece = Piece(3, (7, 8), text, "", 1795294993.90138174)
    body = {"position": 3, "token_ids": [7, 8], "text": text, "time_s": round(piece.time_s, 6)}
    assert _token(piece, 5) == event(body, "token", 5)
