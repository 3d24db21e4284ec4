from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from common.messages import End, State, Work
from tests.api.conftest import Api, Serve
from tests.api.openai.conftest import connect
from tests.api.pipeline import Script

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is zip?"}]


def says(api_tokens: tuple[int, ...]) -> Script:
    """A worker that answers with these tokens, one a frame."""
    return lambda work: [[token] for token in api_tokens]


async def test_a_chat_is_rendered_by_the_models_template(api: Api, client: AsyncOpenAI) -> None:
    await client.chat.completions.create(model="target", messages=MESSAGES, max_tokens=4)
    prompt = api.pipeline.works[0].request.prompt
    rendered = api.context.tokenizer.render(MESSAGES)
    assert rendered.endswith("<|assistant|>\n")
    assert prompt == api.context.tokenizer.encode_now(rendered, add_special_tokens=False)


async def test_an_answer_is_a_message_of_the_assistant(serve: Serve) -> None:
    async with serve() as api, connect(api) as client:
        api.pipeline.script = says(api.context.tokenizer.encode_now("It pairs things.", add_special_tokens=False))
        answer = await client.chat.completions.create(model="target", messages=MESSAGES, max_completion_tokens=40)
        message = answer.choices[0].message
        assert (message.role, message.content) == ("assistant", "It pairs things.")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(api.pipeline.works[0].request.prompt)


async def test_a_streamed_chat_begins_with_the_role_and_joins_to_the_text(serve: Serve) -> None:
    async with serve() as api, connect(api) as client:
        api.pipeline.script = says(api.context.tokenizer.encode_now("It pairs things.", add_special_tokens=False))
        stream = await client.chat.completions.create(
            model="target", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
        assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
        assert "".join(delta.content or "" for delta in deltas) == "It pairs things."
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].usage is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_parted_from_the_answer(serve: Serve, stream: bool) -> None:
    async with serve() as api, connect(api) as client:
        text = "<think>it is a function</think>A built-in."
        api.pipeline.script = says(api.context.tokenizer.encode_now(text, add_special_tokens=False))
        answer: Any = await client.chat.completions.create(model="target", messages=MESSAGES, stream=stream)
        if stream:
            deltas = [chunk.choices[0].delta async for chunk in answer]
            thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
            content = "".join(delta.content or "" for delta in deltas)
        else:
            thought, content = answer.choices[0].message.reasoning_content, answer.choices[0].message.content
            assert answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
        assert (thought, content) == ("it is a function", "A built-in.")


async def test_a_thought_that_the_template_opened_is_reasoning_from_the_start(serve: Serve) -> None:
    async with serve() as api, connect(api) as client:
        text = "hm</think>Yes."
        api.pipeline.script = says(api.context.tokenizer.encode_now(text, add_special_tokens=False))
        options = {"chat_template_kwargs": {"enable_thinking": True}}
        answer: Any = await client.chat.completions.create(model="target", messages=MESSAGES, extra_body=options)
        message = answer.choices[0].message
        assert (message.reasoning_content, message.content) == ("hm", "Yes.")


@pytest.mark.parametrize(("thinks", "expected"), [(None, True), (True, True), (False, False)])
async def test_a_thinking_slo_needs_the_end_of_thinking_token(api: Api, thinks: bool | None, expected: bool) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "tier": "reasoning", "max_tokens": 2}
    if thinks is not None:
        body["chat_template_kwargs"] = {"enable_thinking": thinks}
    response = await api.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    end = api.pipeline.works[0].request.thinking_end
    assert end == (api.context.facts.thinking_end if expected else None)


async def test_content_may_come_in_parts_and_tool_results_are_turns(api: Api, client: AsyncOpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "annotations": []},
        {"role": "tool", "content": "d", "tool_call_id": "1"},
    ]
    await client.chat.completions.create(model="target", messages=messages, max_tokens=1)
    text = api.context.tokenizer.decode(api.pipeline.works[0].request.prompt)
    assert "ab" in text
    assert "d" in text


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"n": 3}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(client: AsyncOpenAI, extra: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="target", messages=MESSAGES, extra_body=extra)
    assert caught.value.param == field


async def test_a_failure_in_mid_stream_is_the_clients_api_error(serve: Serve) -> None:
    def script(work: Work) -> list[list[int]]:
        return [[40], [41], [42]]

    async with serve(script=script, pause_after=1) as api, connect(api) as client:
        stream = await client.chat.completions.create(model="target", messages=MESSAGES, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        await api.pipeline.paused.wait()
        await api.bus.end(api.pipeline.works[0].request.id, End(State.FAILED, "worker_died"))
        with pytest.raises(openai.APIError, match="workers"):
            await anext(chunks)
