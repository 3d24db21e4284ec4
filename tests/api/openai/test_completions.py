from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.api.conftest import Api, Serve
from tests.api.openai.conftest import connect
from tests.api.pipeline import rejected

TEXT = "def add(a, b):"


async def test_a_completion_has_text_usage_and_the_promise(api: Api, client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="target", prompt=TEXT, max_tokens=50)
    assert answer.choices[0].text == TEXT
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 2 * len(api.pipeline.works[0].request.prompt)
    assert answer.model_extra is not None
    assert answer.model_extra["decision"]["verdict"] == "admitted"
    assert answer.model_extra["slo"]["attained"] is True


async def test_a_streamed_completion_joins_to_the_same_text(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="target", prompt=TEXT, max_tokens=50, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(chunks) - 1
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_has_usage_only_if_asked_for(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(model="target", prompt=TEXT, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


@pytest.mark.parametrize("prompt", [[40, 41], [[40, 41]], ["def"], "def"])
async def test_a_prompt_comes_in_four_shapes(api: Api, client: AsyncOpenAI, prompt: Any) -> None:
    await client.completions.create(model="target", prompt=prompt)
    expected = (40, 41) if isinstance(prompt[-1], int | list) else api.context.tokenizer.encode_now("def")
    assert api.pipeline.works[0].request.prompt == expected


async def test_vllms_sampling_fields_and_nulls_are_accepted(api: Api) -> None:
    body = {
        "model": "target",
        "prompt": TEXT,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "top_k": 5,
        "min_p": 0.1,
        "min_tokens": 1,
        "stop_token_ids": [7],
        "logprobs": None,
        "temperature": None,
        "stop": None,
        "user": "someone",
    }
    response = await api.client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    sampling = api.pipeline.works[0].request.sampling
    assert (sampling.repetition_penalty, sampling.ignore_eos, sampling.top_k, sampling.min_p) == (1.1, True, 5, 0.1)
    assert (sampling.min_tokens, sampling.stop_token_ids, sampling.temperature) == (1, (7,), 1.0)


async def test_a_stop_string_cuts_the_text(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="target", prompt=TEXT, max_tokens=50, stop="(a")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("def add", "stop")


async def test_a_stop_string_cancels_the_rest_of_the_work(serve: Serve) -> None:
    async with serve(pause_after=5) as api, connect(api) as client:
        answer = await client.completions.create(model="target", prompt=TEXT, max_tokens=50, stop="add")
        assert answer.choices[0].text == "def "
        cancel = await api.pipeline.cancelled(answer.id)
        assert cancel.reason == "stop"


@pytest.mark.parametrize(
    ("extra", "headers", "tier", "slo"),
    [
        ({"tier": "code"}, {}, "code", (None, 5.0, 50.0)),
        ({"slo": {"ttft_ms": 300, "tpot_ms": 40}}, {}, "chat", (300.0, None, 40.0)),
        ({}, {"X-SLO-Tier": "summarize"}, "summarize", (None, 3.0, 100.0)),
        ({}, {"X-SLO-TTFT-Ms": "250", "X-SLO-TPOT-Ms": "30"}, "chat", (250.0, None, 30.0)),
        ({}, {}, "chat", (None, 5.0, 100.0)),
    ],
)
async def test_an_slo_comes_by_field_or_header(
    api: Api, client: AsyncOpenAI, extra: dict[str, Any], headers: dict[str, str], tier: str, slo: tuple[float, ...]
) -> None:
    await client.completions.create(model="target", prompt="x", extra_body=extra, extra_headers=headers)
    request = api.pipeline.works[0].request
    assert request.slo is not None
    assert (request.tier, (request.slo.ttft_ms, request.slo.ttft_slowdown, request.slo.tpot_ms)) == (tier, slo)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [5000]}, "prompt"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperature": -1}, "temperature"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
async def test_what_is_not_served_is_refused_in_openais_shape(
    api: Api, client: AsyncOpenAI, extra: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="target", prompt="x", extra_body=extra)
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == 400
    assert problem["errors"][0]["field"] == field


async def test_an_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="gpt-9", prompt="x")
    assert caught.value.code == "model_not_found"


async def test_a_rejection_is_the_clients_rate_limit_error(serve: Serve) -> None:
    async with serve(decide=rejected) as api, connect(api) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="target", prompt="x", stream=True)
        assert caught.value.response.headers["retry-after"] == "7"


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["target"]
    assert (await client.models.retrieve("target")).owned_by == "slos-serve"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")
