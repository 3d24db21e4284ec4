"""The planner service with real workers on simulated engines."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from admission.attainable import LONGEST_DRAIN_S
from admission.planning import Lead
from admission.service import AdmissionService
from common.bus.memory import MemoryBus
from common.latency_model import LatencyModel, Piece
from common.messages import End, Overload, Request, Sampling, Slo, Stage, State, Verdict
from common.tiers import load_tiers
from tests.factories import arriving
from tests.pipeline import WAIT_S, Pipeline, quick_settings, running_pipeline, until

SLOW = LatencyModel((Piece(k_token=1e-4, k_draft=0.0, base=0.05),))


async def test_a_request_goes_through_prefill_and_decode_and_ends_once() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        request = arriving(sampling=Sampling(max_tokens=12))
        await bus.submit(request, 100)
        tokens, decisions = await pipeline.text("api", request.id)
        record = await pipeline.ended(request.id)
        assert len(tokens) == 12
        assert tuple(tokens) == record.generated
        assert record.state is State.DONE
        assert record.end == End(State.DONE, "length")
        assert [item.decision.verdict for item in decisions] == [Verdict.ADMITTED]
        assert record.prefill_worker == pipeline.nodes[0].host.id
        assert record.decode_worker == pipeline.nodes[1].host.id


async def test_it_tells_once_its_policy_is_compiled() -> None:
    told, stop = asyncio.Event(), asyncio.Event()
    settings = quick_settings()
    service = AdmissionService(MemoryBus(), settings, load_tiers(), "planner", compiled=told.set)
    running = asyncio.create_task(service.run(stop))
    async with asyncio.timeout(120):
        await told.wait()
    stop.set()
    await running


async def test_a_planner_that_had_nothing_to_plan_does_not_rest_before_it_plans() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, replan_ms=60_000) as pipeline:
        await asyncio.sleep(0.1)  # it has looked, and found nothing
        request = arriving()
        await bus.submit(request, 100)
        assert (await pipeline.ended(request.id)).state is State.DONE


async def test_a_planner_that_does_not_lead_any_more_waits_quietly() -> None:
    bus, looked = MemoryBus(), 0

    def clock() -> float:
        nonlocal looked
        looked += 1
        return time.time()

    async def overdue(lead: Lead) -> float:
        return time.time() - 1.0

    service = AdmissionService(bus, quick_settings(leader_ttl_s=0.2), load_tiers(), "planner", clock)
    service.planning.plan_once = overdue  # type: ignore[method-assign]
    running = asyncio.create_task(service.run(asyncio.Event()))
    await until(lambda: service.leading)
    await bus.resign("planner")
    await bus.lead("rival", 60.0)
    await until(lambda: not service.leading)
    before = looked
    await asyncio.sleep(0.3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert looked - before < 20


async def test_predictions_and_timings_are_in_the_record() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        request = arriving()
        await bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.decision is not None
        assert record.decision.predicted_ttft_ms is not None
        assert {"prefill_taken_s", "first_token_s", "decode_taken_s", "ended_s"} <= set(record.notes)


async def test_what_can_not_be_promised_is_rejected_when_its_sender_asked_for_that() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        request = arriving(slo=Slo(ttft_ms=0.5, ttft_slowdown=None, tpot_ms=100.0), overload=Overload.REJECT)
        await bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.end is not None
        assert (record.state, record.end.reason) == (State.REJECTED, "slo_not_possible")


async def test_what_can_not_be_promised_is_deferred_and_completes_otherwise() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        request = arriving(slo=Slo(ttft_ms=2.1, ttft_slowdown=None, tpot_ms=100.0))  # possible but for the hops
        await bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.state is State.DONE
        assert record.decision is not None
        assert record.decision.verdict is Verdict.DEFERRED


async def test_without_workers_a_request_waits_and_is_served_when_they_come() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, prefill=0, decode=0) as pipeline:
        request = arriving(slo=Slo(ttft_ms=None, ttft_slowdown=1e6, tpot_ms=100.0))
        await bus.submit(request, 100)
        await pipeline.add_worker(Stage.PREFILL)
        assert (await pipeline.ended(request.id)).state is State.DONE


async def test_a_request_whose_patience_runs_out_is_told_so() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, prefill=0, decode=0) as pipeline:
        request = arriving(patience_ms=50.0)
        await bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.end is not None
        assert (record.state, record.end.reason) == (State.EXPIRED, "patience_exceeded")
        assert record.end.retry_after_s == LONGEST_DRAIN_S  # without workers nobody knows


async def test_a_dead_worker_s_requests_continue_elsewhere_with_the_same_text() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        expected = arriving(sampling=Sampling(max_tokens=400))
        await bus.submit(expected, 100)
        truth = (await pipeline.ended(expected.id)).generated
        request = await begun(pipeline, 400, tokens=20, reply_to="other")
        before = await bus.record(request.id)
        await pipeline.nodes[1].kill()
        record = await pipeline.ended(request.id)
        tokens, _ = await pipeline.text("other", request.id)
        assert record.attempt > 1
        assert tuple(tokens) == truth == record.generated
        assert before is not None
        assert record.notes["first_token_s"] == before.notes["first_token_s"]


async def test_no_worker_is_dead_because_the_whole_machine_stood_still() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        request = await begun(pipeline, 400, tokens=20)
        for _ in range(3):
            time.sleep(1.5 * pipeline.settings.worker_dead_s)  # noqa: ASYNC251 - all of it stands still
            await asyncio.sleep(0.2)
        record = await pipeline.ended(request.id)
        assert record.attempt == 1
        assert len(record.generated) == 400


async def test_an_engine_that_dies_ends_its_worker_and_nothing_is_lost() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, prefill=2) as pipeline:
        requests = [arriving(sampling=Sampling(max_tokens=200)) for _ in range(6)]
        for request in requests:
            await bus.submit(request, 100)
        await until_generated(pipeline, requests[-1], 5)
        pipeline.nodes[2].engine.kill()  # type: ignore[attr-defined]  # the simulated engine's
        records = [await pipeline.ended(request.id) for request in requests]
        assert {record.state for record in records} == {State.DONE}
        assert {len(record.generated) for record in records} == {200}


async def test_no_worker_is_dead_because_it_was_silent_when_the_first_planner_came() -> None:
    bus = MemoryBus()
    pipeline = Pipeline(bus, quick_settings(heartbeat_s=0.2))
    try:
        for stage in Stage:
            await pipeline.add_worker(stage)
        names = {node.host.id for node in pipeline.nodes}
        for name in names:
            await bus.leave(name)  # as though heartbeats had run out; the next are on their way
        await pipeline.add_planner()
        request = arriving()
        await bus.submit(request, 100)
        assert (await pipeline.ended(request.id)).state is State.DONE
        async with asyncio.timeout(WAIT_S):  # they beat apart, and one that was declared dead never again
            while {name for name, state in (await bus.workers()).items() if state is not None} != names:
                await asyncio.sleep(0.01)
    finally:
        await pipeline.close()


async def test_a_standby_takes_over_what_the_leader_held_and_ran() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        running = await begun(pipeline, 300)
        standby = await pipeline.add_planner("standby")
        pipeline._background[0].cancel()
        await asyncio.gather(pipeline._background[0], return_exceptions=True)
        waiting = arriving()
        await bus.submit(waiting, 100)
        assert (await pipeline.ended(waiting.id)).state is State.DONE
        assert standby.leading
        assert (await pipeline.ended(running.id)).state is State.DONE


async def test_a_cancelled_request_stops_everywhere_and_frees_its_kv() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        request = await begun(pipeline, 3000)
        assert await bus.end(request.id, End(State.CANCELLED, "client"))
        for node in pipeline.nodes:
            await until(lambda node=node: node.engine.load().free_blocks == 2000)  # type: ignore[misc]
        assert len(pipeline.services[0].planning.cluster.running) == 0


async def test_a_draining_worker_gets_no_more_work_and_finishes_what_it_has() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, decode=2) as pipeline:
        request = arriving(sampling=Sampling(max_tokens=300))
        await bus.submit(request, 100)
        await until_generated(pipeline, request, 5)
        record = await bus.record(request.id)
        assert record is not None
        node = next(node for node in pipeline.nodes if node.host.id == record.decode_worker)
        node.stop.set()
        await asyncio.wait_for(node.task, 10)
        assert (await pipeline.ended(request.id)).attempt == record.attempt
        after = arriving()
        await bus.submit(after, 100)
        assert (await pipeline.ended(after.id)).decode_worker != node.host.id


async def test_many_requests_over_several_tiers_all_end() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, prefill=2, decode=2) as pipeline:
        requests = [arriving(tier=tier) for tier in ("chat", "code", "batch") for _ in range(40)]
        requests = [replace(request, slo=None) if request.tier == "batch" else request for request in requests]
        for request in requests:
            await bus.submit(request, 1000)
        states = {(await pipeline.ended(request.id)).state for request in requests}
        assert states == {State.DONE}


async def begun(pipeline: Pipeline, max_tokens: int, tokens: int = 5, **changes: Any) -> Request:
    """A request that was submitted and has so many tokens by now."""
    request = arriving(sampling=Sampling(max_tokens=max_tokens), **changes)
    await pipeline.bus.submit(request, 100)
    await until_generated(pipeline, request, tokens)
    return request


async def until_generated(pipeline: Pipeline, request: Request, tokens: int) -> None:
    async with asyncio.timeout(10):
        while True:
            record = await pipeline.bus.record(request.id)
            if record is not None and len(record.generated) >= tokens:
                return
            await asyncio.sleep(0.002)


async def test_a_worker_is_told_that_the_leader_plans_with_it() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, prefill=0, decode=0) as pipeline:
        node = await pipeline.add_worker(Stage.PREFILL)
        async with asyncio.timeout(10):
            while not ((state := (await bus.workers())[node.host.id]) and state.known):
                await asyncio.sleep(0.005)
        assert node.host.id in pipeline.services[0].planning.cluster.workers


async def test_the_product_s_policy_serves_promised_and_offline_work() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, prefill=2, decode=2, policy="ours") as pipeline:
        requests = [arriving(tier=tier) for tier in ("chat", "code", "batch") for _ in range(20)]
        requests = [replace(request, slo=None) if request.tier == "batch" else request for request in requests]
        for request in requests:
            await bus.submit(request, 1000)
        assert {(await pipeline.ended(request.id)).state for request in requests} == {State.DONE}
