import json
from dataclasses import replace
from typing import Any

import pytest

from api.context import Context
from api.intake import Sender
from api.lines import CHAT, COMPLETIONS, PreparedLine, prepare_line
from api.problems import ProblemError
from common.messages import End, Record, State
from tests.api.pipeline import decision

SENDER = Sender("alice", 100.0)


async def prepared(context: Context, path: str = COMPLETIONS, **body: Any) -> PreparedLine:
    return await prepare_line(path, "line-1", json.dumps(body).encode(), SENDER, context)


def record(line: PreparedLine, text: str, end: End) -> Record:
    tokens = line.context.tokenizer.encode_now(text, add_special_tokens=False)
    return Record(line.prepared.request, end.state, 1, decision(), tokens, end, {}, None, None)


async def test_a_line_becomes_the_request_that_the_route_would_send(context: Context) -> None:
    line = await prepared(context, prompt="x", max_tokens=3, tier="batch")
    request = line.prepared.request
    assert (request.id, request.tenant, request.tier, request.slo) == ("line-1", "alice", "batch", None)
    assert request.reply_to == ""


async def test_a_finished_record_becomes_the_routes_answer(context: Context) -> None:
    line = await prepared(context, prompt="x")
    status, body = line.response(record(line, "the answer", End(State.DONE, "length")))
    assert (status, body["choices"][0]["text"], body["id"]) == (200, "the answer", "line-1")


async def test_a_finished_chat_becomes_a_message(context: Context) -> None:
    line = await prepared(context, CHAT, messages=[{"role": "user", "content": "x"}])
    status, body = line.response(record(line, "the answer", End(State.DONE, "length")))
    assert (status, body["choices"][0]["message"]["content"]) == (200, "the answer")


async def test_a_failed_record_becomes_its_problem(context: Context) -> None:
    line = await prepared(context, prompt="x")
    failed = replace(record(line, "", End(State.FAILED, "worker_died")), decision=None)
    status, body = line.response(failed)
    assert (status, body["error"]["code"]) == (503, "worker_died")


async def test_a_stop_string_in_an_unfinished_record_is_seen(context: Context) -> None:
    line = await prepared(context, prompt="x", stop=["answer"])
    running = replace(record(line, "the answer is", End(State.DONE, "length")), end=None, state=State.RUNNING)
    assert line.delivery(running).stopped


async def test_a_bad_line_is_the_problem_of_the_route(context: Context) -> None:
    with pytest.raises(ProblemError) as caught:
        await prepared(context, prompt="x", n=2)
    assert caught.value.problem.errors[0].field == "n"
