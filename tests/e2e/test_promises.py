"""Promises on real engines: kept under a burst, refused or deferred where they can not be, staged by thinking."""

import asyncio
import math
import random
from collections.abc import Iterator

import httpx
import pytest

from bench.cluster import Child, Cluster
from common.bus.redis import RedisBus
from common.latency_model import LatencyModel
from common.slo import Objective, attained
from common.telemetry import names
from tests.e2e.client import Answer, finished, generate, post, session, stream
from tests.e2e.conftest import Truth
from tests.e2e.test_pipeline import until, whole
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LONG_TOKENS = 3900
CHUNK_TOKENS = 2048
BURST = 24
DEFERRED_BURST_S = 50.0
"""Two workers' work within the patience of 30 s, and several times what they can have in time: after a burst their
models may still say that prompts take twice as long as they do."""
NOISE = 0.15
"""Deadlines are stretched by this much more than the metric does: processes share two cores here."""


@pytest.fixture(scope="module", autouse=True)
def elastic(cluster: Cluster) -> Iterator[None]:
    """Prompts may go to either worker while these tests run, so that they meet decodes."""
    replace_planner(cluster, SLOS_ELASTIC="true")
    yield
    replace_planner(cluster)


def replace_planner(cluster: Cluster, **environment: str) -> None:
    """The new one stands by until it is warm, then takes over."""
    before = next(c for c in cluster.children.values() if c.name.startswith("admission") and c.alive)
    after = cluster.start("admission", **environment)
    asyncio.run(until(lambda: said(after, "planning")))
    before.terminate()
    asyncio.run(until(lambda: said(after, "leading")))


def said(child: Child, event: str) -> bool:
    return f'"event":"{event}"' in child.log.read_text().replace(": ", ":")


async def test_a_burst_of_loose_prompts_does_not_make_a_tight_stream_miss(cluster: Cluster, bus: RedisBus) -> None:
    """With stock batches (SLOS_BATCH_POLICY=stock) it waits for all of the burst that came before it, and misses."""
    await whole(cluster, bus)
    long_s = long_prefill_s(await latency(bus))
    tpot_ms = max(30.0, 0.5e3 * long_s / 2)
    tight = Answer()
    async with session(cluster.url) as client:
        slo = {"ttft_ms": 2e3 * long_s + 100.0, "tpot_ms": tpot_ms}
        loose = {"ttft_ms": 60_000.0 + 1e3 * BURST * long_s, "tpot_ms": 2000.0}
        burst = [finished(client, prompt_token_ids=prompt(LONG_TOKENS), max_tokens=4, slo=loose) for _ in range(BURST)]
        others = asyncio.gather(*burst)
        await asyncio.sleep(0.5)
        await run(client, tight, prompt(300), 40, slo)
        assert not others.done()
        answers = await others
    record = await bus.record(tight.request_id)
    assert record is not None
    assert tight.verdicts == ["admitted"]
    assert tight.decision["decode_worker"] in {other.decision["prefill_worker"] for other in answers}
    objective = Objective(record.request.arrival_s, slo["ttft_ms"] / 1e3, tpot_ms / 1e3)
    assert attained(objective, tight.times_s, tolerance=NOISE)
    assert [other.error for other in answers] == [{}] * BURST
    assert all(other.done["slo"]["attained"] for other in answers)


async def test_a_refused_request_is_admitted_when_it_comes_back_at_the_time_it_was_told(
    cluster: Cluster, bus: RedisBus
) -> None:
    await whole(cluster, bus)
    prefill_s = long_prefill_s(await latency(bus))
    # a fraction of 24 fits, though models may still say that prompts take twice as long as they do
    body = {"max_tokens": 2, "slo": {"ttft_ms": 3e3 * prefill_s + 1000, "tpot_ms": 2000.0}, "on_overload": "reject"}
    async with session(cluster.url) as client:
        prompts = [prompt(LONG_TOKENS) for _ in range(24)]
        responses = await asyncio.gather(*(post(client, prompt_token_ids=tokens, **body) for tokens in prompts))
        assert {429} <= {response.status_code for response in responses} <= {200, 429}
        number, refused = next((i, one) for i, one in enumerate(responses) if one.status_code == 429)
        assert refused.json()["decision"]["verdict"] == "rejected"
        retry_after_s = int(refused.headers["retry-after"])
        assert 1 <= retry_after_s <= 1 + 24 * prefill_s
        await asyncio.sleep(retry_after_s)
        again = await post(client, prompt_token_ids=prompts[number], **body)
    assert again.status_code == 200, again.text
    assert again.json()["decision"]["verdict"] == "admitted"


async def test_a_deferred_request_completes_and_says_so(cluster: Cluster, bus: RedisBus) -> None:
    await whole(cluster, bus)
    long_s = long_prefill_s(await latency(bus))
    slo = {"ttft_ms": 2e3 * long_s + 500, "tpot_ms": 2000.0}
    count = min(32, math.ceil(DEFERRED_BURST_S / long_s))
    async with session(cluster.url) as client:
        body = {"max_tokens": 3, "slo": slo, "on_overload": "defer", "ignore_eos": True}
        burst = [finished(client, prompt_token_ids=prompt(LONG_TOKENS), **body) for _ in range(count)]
        answers = await asyncio.gather(*burst)
    assert [answer.error for answer in answers] == [{}] * count
    assert [len(answer.tokens) for answer in answers] == [3] * count
    deferred = [answer for answer in answers if answer.verdicts[0] == "deferred"]
    assert deferred
    for answer in deferred:
        late = {"deferred": "left_over_capacity", "admitted": "promoted"}
        assert answer.decision["reason"] == late[answer.decision["verdict"]]
        assert answer.done["decision"] == answer.decision
        assert answer.decision["verdict"] == "admitted" or answer.done["slo"]["attained"] is False


async def test_a_reasoning_request_changes_its_pace_at_the_end_of_thinking(
    cluster: Cluster, plain: Truth, receiver: OtlpReceiver, bus: RedisBus
) -> None:
    await whole(cluster, bus)
    answer = plain.long_answer
    thought = next(n for n in range(22, 100) if answer.index(answer[n - 1]) == n - 1)
    slo = {"ttft_ms": 5000.0, "tpot_ms": 400.0, "thinking_tpot_ms": 150.0}
    thinking = {"start_token_id": answer[0], "end_token_id": answer[thought - 1]}
    async with session(cluster.url) as client:
        body = {"prompt_token_ids": plain.long_prompt, "max_tokens": thought + 30, "ignore_eos": True}
        given = await generate(client, slo=slo, thinking=thinking, **body)
    assert given["token_ids"] == answer[: thought + 30]
    assert given["slo"]["objective"] == slo
    assert given["slo"]["achieved"]["thinking_tokens"] == thought
    assert 0 < given["slo"]["achieved"]["thinking_tpot_ms"] < 150 * (1 + NOISE)
    assert 0 < given["slo"]["achieved"]["tpot_ms"] < 400 * (1 + NOISE)
    due_s = await deadlines(receiver, given["request_id"])
    assert due_s[20] - due_s[10] == pytest.approx(10 * 0.15, abs=1e-3)
    last = thought // 10 * 10 + 30 if thought % 10 else thought + 30
    last = max(position for position in due_s if position <= last)
    assert due_s[last] - due_s[last - 10] == pytest.approx(10 * 0.4, abs=1e-3)


async def test_the_next_rounds_of_a_session_find_their_prefix(cluster: Cluster, bus: RedisBus) -> None:
    """A preference, so one of three sessions must; once a second round went to the other worker, why is not known."""
    await whole(cluster, bus)
    async with session(cluster.url) as client:
        for name in ("one", "two", "three"):
            workers, cached = await three_rounds(client, name)
            if len(set(workers)) == 1 and cached >= 1000:
                return
    pytest.fail(f"the last session's rounds went to {workers}, {cached} tokens of the last one were cached")


async def three_rounds(client: httpx.AsyncClient, name: str) -> tuple[list[str], float]:
    """Where the rounds of a session were prefilled, and how many tokens the last one found there."""
    slo = {"ttft_ms": 30_000.0, "tpot_ms": 2000.0}
    history = prompt(1000)
    workers = []
    for _ in range(3):
        body = {"prompt_token_ids": history, "max_tokens": 8, "session_id": name, "slo": slo}
        answer = await generate(client, **body)
        workers.append(answer["decision"]["prefill_worker"])
        history = history + answer["token_ids"] + prompt(100)
    record = (await client.get(f"/requests/{answer['request_id']}")).json()
    return workers, record["timings"]["cached_tokens"]


async def deadlines(receiver: OtlpReceiver, request_id: str) -> dict[int, float]:
    """When the worker took each checked token to be due, from its span."""

    def mine() -> list[ReceivedSpan]:
        return [span for span in receiver.named("decode") if span.attributes.get(names.REQUEST_ID) == request_id]

    await until(lambda: bool(mine()), seconds=20.0)
    events = [event for span in mine() for event in span.events if event.name == names.SLACK]
    return {e.attributes[names.POSITION]: e.time_s + e.attributes[names.SLACK_MS] / 1e3 for e in events}


async def run(
    client: httpx.AsyncClient, answer: Answer, tokens: list[int], max_tokens: int, slo: dict[str, float]
) -> None:
    body = {"prompt_token_ids": tokens, "max_tokens": max_tokens, "ignore_eos": True, "slo": slo}
    async for _ in stream(client, answer, on_overload="reject", **body):
        pass


async def latency(bus: RedisBus) -> LatencyModel:
    """Of the slower worker, as its last heartbeat says."""
    states = [state for state in (await bus.workers()).values() if state is not None]
    return max((state.latency for state in states), key=long_prefill_s)


def long_prefill_s(model: LatencyModel) -> float:
    return model.prefill_seconds(LONG_TOKENS, CHUNK_TOKENS)


def prompt(length: int) -> list[int]:
    """Never the same again, so that no prefix is cached."""
    return [random.randrange(16, 2048) for _ in range(length)]
