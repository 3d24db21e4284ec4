import time

import aiohttp
import pytest

from bench.real.backends import Disaggregated, Product, Stock
from bench.real.job import Answer, AnswerError, Job
from bench.real.routing import make_router
from common.messages import Slo, Verdict
from tests.bench.real.server import BROKEN, REFUSED, Body, serving

JOB = Job(0, [300, 301], 5, Slo(120.0, None, 20.0))


async def two_then_three(_body: Body):  # type: ignore[no-untyped-def]
    yield 2
    yield 3


async def test_every_token_of_an_event_has_come_when_the_event_has() -> None:
    answer = Answer()
    async with serving(two_then_three) as (url, _), aiohttp.ClientSession() as http:
        begun_s = time.time()
        await Stock(make_router("round-robin", [url]), "m", [url]).ask(http, JOB, answer)
    assert len(answer.token_times_s) == 5
    assert answer.token_times_s[0] == answer.token_times_s[1]
    assert begun_s <= answer.token_times_s[0] <= answer.token_times_s[-1] <= time.time()


async def test_stock_servers_are_asked_for_exactly_so_many_tokens_and_nothing_of_slos() -> None:
    async with serving() as (url, bodies), aiohttp.ClientSession() as http:
        await Stock(make_router("round-robin", [url]), "m", [url]).ask(http, JOB, Answer())
    (body,) = bodies
    assert (body["prompt"], body["max_tokens"], body["ignore_eos"]) == ([300, 301], 5, True)
    assert "slo" not in body


async def test_a_disaggregated_answer_is_decoded_with_what_prefill_said_of_its_kv() -> None:
    answer = Answer()
    async with serving() as (first, at_first), serving() as (second, at_second), aiohttp.ClientSession() as http:
        await Disaggregated([first], [second], "m").ask(http, JOB, answer)
    assert (at_first[0]["max_tokens"], at_first[0]["kv_transfer_params"]["do_remote_decode"]) == (1, True)
    assert (at_second[0]["max_tokens"], at_second[0]["kv_transfer_params"]) == (5, {"remote_engine_id": "e1"})
    assert len(answer.token_times_s) == 5


async def test_the_product_is_told_the_slo_and_its_last_decision_counts() -> None:
    answer = Answer()
    async with serving() as (url, bodies), aiohttp.ClientSession() as http:
        await Product(url).ask(http, JOB, answer)
    assert bodies[0]["slo"] == {"ttft_ms": 120.0, "tpot_ms": 20.0}
    assert answer.verdicts == [Verdict.DEFERRED, Verdict.ADMITTED]
    assert (answer.predicted_ttft_s, answer.predicted_tpot_s) == (0.05, 0.005)
    assert len(answer.token_times_s) == 5


async def test_rounds_of_a_session_tell_the_product_so() -> None:
    async with serving() as (url, bodies), aiohttp.ClientSession() as http:
        await Product(url).ask(http, Job(0, [1], 1, None, session="s1", last_round=True), Answer())
    assert (bodies[0]["session_id"], bodies[0]["last_round"]) == ("s1", True)
    assert "slo" not in bodies[0]


async def test_a_refusal_is_a_verdict_and_an_error() -> None:
    answer = Answer()
    async with serving() as (url, _), aiohttp.ClientSession() as http:
        with pytest.raises(AnswerError, match="queue_full"):
            await Product(url).ask(http, Job(0, [1], REFUSED), answer)
    assert answer.verdicts == [Verdict.REJECTED]


async def test_an_answer_that_breaks_off_is_an_error() -> None:
    async with serving(two_then_three) as (url, _), aiohttp.ClientSession() as http:
        with pytest.raises(AnswerError, match="worker_died"):
            await Product(url).ask(http, Job(0, [1], BROKEN), Answer())
