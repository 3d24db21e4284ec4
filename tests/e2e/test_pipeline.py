"""The whole pipeline on real vLLM engines: right tokens whatever dies, nothing lost, one trace a request."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable

import pytest

from bench.cluster import Child, Cluster
from common.bus.redis import RedisBus
from common.messages import Stage, State
from common.telemetry import names
from tests.e2e.client import Answer, finished, generate, session, stream
from tests.e2e.conftest import LONG_OUTPUT_TOKENS, OUTPUT_TOKENS, Truth
from tests.otlp_receiver import OtlpReceiver

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TIERS = ["chat", "code", "summarize"]


async def test_twenty_greedy_prompts_through_prefill_and_decode_equal_one_plain_engine(
    cluster: Cluster, plain: Truth, bus: RedisBus
) -> None:
    await whole(cluster, bus)
    async with session(cluster.url) as client:
        for prompt, expected in zip(plain.prompts, plain.answers, strict=True):
            answer = await generate(client, prompt_token_ids=prompt, max_tokens=OUTPUT_TOKENS)
            assert answer["token_ids"] == expected
            assert answer["decision"]["prefill_worker"] != answer["decision"]["decode_worker"]


async def test_forty_concurrent_streams_over_three_tiers_get_their_own_text(
    cluster: Cluster, plain: Truth, bus: RedisBus
) -> None:
    await whole(cluster, bus)
    async with session(cluster.url) as client:
        answers = await asyncio.gather(
            *(
                finished(
                    client,
                    prompt_token_ids=plain.prompts[i % 20],
                    max_tokens=OUTPUT_TOKENS,
                    tier=TIERS[i % 3],
                    on_overload="defer",
                )
                for i in range(40)
            )
        )
    assert [answer.tokens for answer in answers] == [plain.answers[i % 20] for i in range(40)]


@pytest.mark.parametrize("module", ["prefill_worker", "decode_worker"])
async def test_a_killed_worker_s_requests_end_with_their_full_right_text(
    cluster: Cluster, plain: Truth, bus: RedisBus, module: str
) -> None:
    await whole(cluster, bus)
    victim = alive(cluster, module)
    async with session(cluster.url) as client:
        answers = [Answer() for _ in range(4)]
        streams = [
            asyncio.create_task(collect(client, answer, plain.long_prompt, LONG_OUTPUT_TOKENS)) for answer in answers
        ]
        await until(lambda: all(len(answer.tokens) >= 5 for answer in answers))
        more = [asyncio.create_task(collect(client, Answer(), prompt, OUTPUT_TOKENS)) for prompt in plain.prompts]
        victim.kill()
        cluster.start(module)
        await asyncio.gather(*streams)
        others = await asyncio.gather(*more)
    assert [answer.tokens for answer in answers] == [plain.long_answer] * 4
    assert [answer.tokens for answer in others] == plain.answers


async def test_a_client_that_goes_away_frees_the_kv_on_both_sides(
    cluster: Cluster, plain: Truth, bus: RedisBus
) -> None:
    await whole(cluster, bus)
    await until_async(lambda: all_free(bus))
    async with session(cluster.url) as client:
        answer = Answer()
        events = stream(client, answer, prompt_token_ids=plain.long_prompt, max_tokens=3000, ignore_eos=True)
        async for _ in events:
            if len(answer.tokens) >= 3:
                break
        await until_async(lambda: in_use(bus))
        await events.aclose()  # type: ignore[attr-defined]  # of an async generator
    await until_async(lambda: cancelled(bus, answer.request_id), seconds=2.0)
    await until_async(lambda: all_free(bus), seconds=2.0)


async def test_redis_restarted_loses_nothing_accepted(cluster: Cluster, plain: Truth, bus: RedisBus) -> None:
    await whole(cluster, bus)
    async with session(cluster.url) as client:
        answers = [Answer() for _ in range(6)]
        running = [
            asyncio.create_task(collect(client, answer, plain.long_prompt, LONG_OUTPUT_TOKENS)) for answer in answers
        ]
        await until(lambda: all(len(answer.tokens) >= 5 for answer in answers))
        await asyncio.to_thread(cluster.redis.restart)
        await asyncio.gather(*running)
    assert [answer.tokens for answer in answers] == [plain.long_answer] * 6


async def test_sigterm_drains_a_decode_worker(cluster: Cluster, plain: Truth, bus: RedisBus) -> None:
    await whole(cluster, bus)
    victim = alive(cluster, "decode_worker")
    async with session(cluster.url) as client:
        answer = Answer()
        running = asyncio.create_task(collect(client, answer, plain.long_prompt, LONG_OUTPUT_TOKENS))
        await until(lambda: len(answer.tokens) >= 5)
        code = await asyncio.to_thread(victim.terminate)
        await running
    record = await bus.record(answer.request_id)
    cluster.start("decode_worker")
    assert code == 0
    assert answer.tokens == plain.long_answer
    assert record is not None
    assert record.attempt == 1


async def test_one_request_is_one_trace_without_orphans_or_prompts(
    cluster: Cluster, receiver: OtlpReceiver, bus: RedisBus
) -> None:
    await whole(cluster, bus)
    async with session(cluster.url) as client:
        slo = {"ttft_ms": 30_000, "tpot_ms": 1000}
        answer = await generate(client, prompt="import secret_module_name", max_tokens=30, ignore_eos=True, slo=slo)
    request_id = answer["request_id"]
    wanted = {"POST /generate", "send requests.chat", "admission", "prefill", "kv.transfer", "decode"}

    def mine() -> list[str]:
        trace_ids = {span.trace_id for span in receiver.spans if span.attributes.get(names.REQUEST_ID) == request_id}
        return [span.name for span in receiver.spans if span.trace_id in trace_ids]

    with contextlib.suppress(AssertionError):
        await until(lambda: wanted <= set(mine()), seconds=15.0)
    assert sorted(mine()) == sorted(wanted)
    trace_id = next(span.trace_id for span in receiver.spans if span.attributes.get(names.REQUEST_ID) == request_id)
    spans = [span for span in receiver.spans if span.trace_id == trace_id]
    ids = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_id is None] == ["POST /generate"]
    assert all(span.parent_id in ids for span in spans if span.parent_id is not None)
    admission = next(span for span in spans if span.name == "admission")
    assert admission.links
    assert admission.attributes[names.PREDICTED_TTFT_MS] > 0
    assert "secret_module_name" not in repr(spans)


def test_logs_hold_neither_prompts_nor_keys(cluster: Cluster) -> None:
    logs = "".join(child.log.read_text() for child in cluster.children.values())
    assert "secret_module_name" not in logs
    assert "e2e-secret-key" not in logs


async def collect(client: object, answer: Answer, prompt: list[int], max_tokens: int) -> Answer:
    async for _ in stream(client, answer, prompt_token_ids=prompt, max_tokens=max_tokens):  # type: ignore[arg-type]
        pass
    assert not answer.error, answer.error
    return answer


async def whole(cluster: Cluster, bus: RedisBus) -> None:
    """Wait until there is a worker for each stage, after a test that took one away.

    What ended by itself is started again when that has been reported once: not all tests after it fail too.
    """
    try:
        await cluster.ready()
    except RuntimeError:
        for name, child in list(cluster.children.items()):
            if not child.alive:
                del cluster.children[name]
                if child.process.returncode not in (0, -signal.SIGKILL):
                    cluster.start(name.rsplit("-", 1)[0])
        raise

    async def both() -> bool:
        states = [state for state in (await bus.workers()).values() if state is not None and not state.draining]
        return {state.prefers for state in states if state.known} == set(Stage)

    await until_async(both)


async def cancelled(bus: RedisBus, request_id: str) -> bool:
    record = await bus.record(request_id)
    return record is not None and record.state is State.CANCELLED


async def in_use(bus: RedisBus) -> bool:
    """Heartbeats tell of the KV of what runs."""
    return not await all_free(bus)


async def all_free(bus: RedisBus) -> bool:
    states = [state for state in (await bus.workers()).values() if state is not None]
    return bool(states) and all(state.free_blocks >= state.total_blocks - 1 for state in states)


def alive(cluster: Cluster, module: str) -> Child:
    return next(child for child in cluster.children.values() if child.name.startswith(module) and child.alive)


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        await asyncio.sleep(0.02)


async def until_async(condition: "Callable[[], object]", seconds: float = 60.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not await condition():  # type: ignore[misc]  # an awaitable
        assert time.monotonic() < deadline_s, "waited too long"
        await asyncio.sleep(0.02)
