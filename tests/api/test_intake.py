from typing import Any

import pytest

from api.context import Context
from api.generate import intake
from api.intake import Sender
from api.problems import ProblemError
from api.schemas import GenerateBody
from common.messages import Overload, Request

SENDER = Sender("alice", 123.5, "api-1")


async def request_of(context: Context, headers: dict[str, str] | None = None, **body: Any) -> Request:
    sender = Sender(SENDER.tenant, SENDER.arrival_s, SENDER.reply_to, headers or {})
    parsed = GenerateBody.model_validate({"prompt_token_ids": [1, 2, 3], **body})
    return (await intake("req-1", parsed, sender, context)).request


async def test_a_request_carries_who_sent_it_when_and_where_the_answer_goes(context: Context) -> None:
    request = await request_of(context, session_id="s", priority=3, last_round=True)
    assert (request.tenant, request.arrival_s, request.reply_to) == ("alice", 123.5, "api-1")
    assert (request.session_id, request.priority, request.last_round) == ("s", 3, True)


async def test_a_tier_gives_slo_value_patience_and_overload(context: Context) -> None:
    request = await request_of(context, tier="reasoning")
    assert request.slo is not None
    assert (request.slo.ttft_slowdown, request.slo.tpot_ms, request.slo.thinking_tpot_ms) == (3, 100, 50)
    assert (request.patience_ms, request.value, request.overload) == (60_000, 1, Overload.DEFER)
    assert request.thinking_end == context.facts.thinking_end


async def test_the_last_round_of_a_session_has_its_own_tpot(context: Context) -> None:
    rounds = [await request_of(context, tier="tool", last_round=last) for last in (False, True)]
    assert [request.slo and request.slo.tpot_ms for request in rounds] == [50, 100]


async def test_a_tier_without_a_promise_has_no_slo_and_is_deferred(context: Context) -> None:
    request = await request_of(context, tier="batch")
    assert (request.slo, request.overload, request.thinking_end) == (None, Overload.DEFER, None)


async def test_the_sender_says_what_to_do_on_overload(context: Context) -> None:
    assert (await request_of(context, tier="chat", on_overload="reject")).overload is Overload.REJECT


async def test_an_explicit_slo_waits_in_the_default_tier(context: Context) -> None:
    slo = {"ttft_slowdown": 2, "tpot_ms": 20, "thinking_tpot_ms": 10}
    request = await request_of(context, slo=slo)
    assert request.slo is not None
    assert (request.tier, request.slo.ttft_ms, request.slo.ttft_slowdown) == (context.tiers.default, None, 2)
    assert request.thinking_end == context.facts.thinking_end


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({}, "max_tokens", 128),
        ({"prompt_token_ids": [1] * 4000}, "max_tokens", 96),
        ({"prompt_token_ids": [1] * 4095}, "max_tokens", 1),
        ({"max_tokens": 4093}, "max_tokens", 4093),
        ({"temperature": 1e-9}, "temperature", 0.0),
        ({"temperature": None}, "temperature", 1.0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": None}, "top_k", 0),
        ({"seed": -5}, "seed", -5),
        ({"stop_token_ids": [7, 9]}, "stop_token_ids", (7, 9)),
        ({"repetition_penalty": None}, "repetition_penalty", 1.0),
    ],
)
async def test_sampling_is_taken_over_with_its_defaults(
    context: Context, given: dict[str, Any], field: str, expected: object
) -> None:
    assert getattr((await request_of(context, **given)).sampling, field) == expected


async def test_headers_give_an_slo_that_the_body_leaves_open(context: Context) -> None:
    headers = {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "30.5"}
    request = await request_of(context, headers)
    assert request.slo is not None
    assert (request.slo.ttft_ms, request.slo.tpot_ms) == (250.0, 30.5)


async def test_several_errors_are_told_at_once(context: Context) -> None:
    with pytest.raises(ProblemError) as caught:
        await request_of(context, max_tokens=5000, stop_token_ids=[5000])
    assert [error.field for error in caught.value.problem.errors] == ["max_tokens", "stop_token_ids"]


async def test_a_request_may_name_its_own_think_tokens(context: Context) -> None:
    thinking = {"start_token_id": 30, "end_token_id": 31}
    request = await request_of(context, tier="reasoning", thinking=thinking)
    assert (request.thinking_start, request.thinking_end) == (30, 31)
    ends = await request_of(context, tier="reasoning", thinking={"end_token_id": 31})
    assert (ends.thinking_start, ends.thinking_end) == (None, 31)
    assert (await request_of(context, tier="chat", thinking=thinking)).thinking_end is None


async def test_a_thought_that_the_prompt_has_opened_begins_with_the_first_token(context: Context) -> None:
    start = context.facts.thinking_start
    assert (await request_of(context, tier="reasoning")).thinking_start == start
    assert (await request_of(context, tier="reasoning", prompt_token_ids=[1, start])).thinking_start is None


async def test_think_tokens_must_be_of_the_vocabulary(context: Context) -> None:
    with pytest.raises(ProblemError) as caught:
        await request_of(context, tier="reasoning", thinking={"start_token_id": 1, "end_token_id": 1 << 20})
    assert [error.field for error in caught.value.problem.errors] == ["thinking.end_token_id"]
