"""Whatever is sent: 2xx or 4xx with a problem, never 5xx, and never the prompt in an error."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from api.app import create_app
from api.context import Context
from api.schemas import ChatBody, CompletionBody, GenerateBody
from common.bus.memory import MemoryBus
from common.settings import Settings
from tests.api.pipeline import Pipeline

MARK = "qzjx"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just(MARK * 4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "prompt": st.text(max_size=20) | st.just(MARK * 4),
    "prompt_token_ids": st.lists(st.integers(-2, 3000), max_size=6),
    "max_tokens": st.integers(-1, 5000),
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "robot"]), "content": st.text()}),
        max_size=3,
    ),
    "tier": st.sampled_from(["chat", "code", "gold", ""]),
    "slo": st.fixed_dictionaries({"ttft_ms": st.floats(), "tpot_ms": st.integers(-1, 100)}),
    "stop": st.lists(st.text(max_size=3), max_size=3),
    "stream": st.booleans(),
    "temperature": st.floats(-1, 3),
    "on_overload": st.sampled_from(["reject", "defer", "x"]),
}
ROUTES: dict[str, type[BaseModel]] = {
    "/generate": GenerateBody,
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
}


VALID: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "x"},
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    path = draw(st.sampled_from(sorted(ROUTES)))
    names = draw(st.lists(st.sampled_from([*ROUTES[path].model_fields, "unknown"]), max_size=3, unique=True))
    body = VALID[path] if draw(st.booleans()) else {}
    body = body | {name: draw(st.one_of(LIKELY.get(name, st.none()), JSON)) for name in names}
    return path, json.dumps(body).encode()


@dataclass(frozen=True)
class Fuzzed:
    """An app whose loop lives as long as the module, so that an example costs one request."""

    runner: asyncio.Runner
    client: httpx.AsyncClient

    def post(self, path: str, content: bytes) -> httpx.Response:
        return self.runner.run(self.client.post(path, content=content, headers={"content-type": "application/json"}))


@pytest.fixture(scope="module")
def fuzzed(context: Context) -> Iterator[Fuzzed]:
    bus = MemoryBus()
    app = create_app(Settings(), bus, context)
    pipeline = Pipeline(bus, script=lambda work: [[40]])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        runner.run(stack.enter_async_context(app.router.lifespan_context(app)))
        runner.run(stack.enter_async_context(pipeline.serving()))
        client = httpx.AsyncClient(transport=transport, base_url="http://api")
        yield Fuzzed(runner, runner.run(stack.enter_async_context(client)))
        runner.run(stack.aclose())


@given(sent=st.one_of(bodies(), st.tuples(st.sampled_from(sorted(ROUTES)), st.binary(max_size=40))))
@settings(max_examples=300)
def test_no_body_causes_a_fault_of_the_server(fuzzed: Fuzzed, sent: tuple[str, bytes]) -> None:
    path, content = sent
    response = fuzzed.post(path, content)
    assert response.status_code < 500, (path, content, response.text)
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert MARK not in response.text
        assert ("error" in response.json()) == path.startswith("/v1/")


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_the_fuzzed_routes_exist(fuzzed: Fuzzed, path: str) -> None:
    assert fuzzed.post(path, b"{}").status_code in (400, 422)
