"""A client of the pipeline under test."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

HEADERS = {"Authorization": "Bearer e2e-secret-key"}


@dataclass
class Answer:
    """One streamed answer, as received so far."""

    request_id: str = ""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    times_s: list[float] = field(default_factory=list)
    """When its worker had each token."""
    decision: dict[str, Any] = field(default_factory=dict)
    """The latest one."""
    verdicts: list[str] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)


async def post(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """Whatever comes back."""
    return await client.post("/generate", json={"temperature": 0, **body})


@asynccontextmanager
async def session(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=120.0) as client:
        yield client


async def generate(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """A whole answer."""
    response = await post(client, **body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def stream(client: httpx.AsyncClient, answer: Answer, **body: Any) -> AsyncIterator[Answer]:
    """The answer after each event; the caller may stop listening at any time."""
    async with client.stream("POST", "/generate", json={"temperature": 0, "stream": True, **body}) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                _apply(answer, name, json.loads(line.removeprefix("data: ")))
                yield answer


async def finished(client: httpx.AsyncClient, **body: Any) -> Answer:
    """A streamed answer at its end."""
    answer = Answer()
    async for _ in stream(client, answer, **body):
        pass
    return answer


def _apply(answer: Answer, name: str, data: dict[str, Any]) -> None:
    answer.request_id = data.get("request_id", answer.request_id)
    if name == "token":
        assert data["position"] == len(answer.tokens)
        answer.tokens += data["token_ids"]
        answer.text += data["text"]
        answer.times_s += [data["time_s"]] * len(data["token_ids"])
    elif name == "decision":
        answer.decision = data["decision"]
        answer.verdicts.append(data["decision"]["verdict"])
    elif name == "done":
        answer.done = data
    elif name == "error":
        answer.error = data
