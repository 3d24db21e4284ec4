"""A worker on a simulated engine and an in-memory queue: hand-offs, leases, cancels, loss."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.bus.interface import START, Cursor, Wake
from common.bus.memory import MemoryBus
from common.engine.interface import Job, Output
from common.engine.simulated import KvRegistry, SimulatedEngine
from common.errors import BusUnavailable, EngineRefused
from common.messages import (
    Cancel,
    Decision,
    End,
    Frame,
    HandOff,
    KeepTrace,
    Known,
    Sampling,
    Stage,
    State,
    Verdict,
    Work,
    WorkerState,
)
from common.settings import Settings
from common.telemetry import metrics
from common.worker.host import WorkerHost, WorkerLost, stages
from common.worker.job import WorkJob
from tests.common.bus.steps import taken
from tests.factories import make_request
from tests.pipeline import QUICK, quick_settings, until

BLOCKS = 500


class Bench:
    """Two workers and a test that plays the planner."""

    def __init__(self, **changes: Any) -> None:
        self.bus = MemoryBus()
        self.settings: Settings = quick_settings(**changes)
        self.registry = KvRegistry()
        self.engines: dict[Stage, SimulatedEngine] = {}
        self.hosts: dict[Stage, WorkerHost] = {}
        self.tasks: dict[Stage, asyncio.Task[None]] = {}
        self.stops: dict[Stage, asyncio.Event] = {}
        self.token = 0

    async def start(self, *wanted: Stage) -> None:
        token = await self.bus.lead("planner", 60.0)
        assert token is not None
        self.token = token
        for stage in wanted or tuple(Stage):
            engine = SimulatedEngine(self.settings, latency=QUICK, registry=self.registry, total_blocks=BLOCKS)
            host = WorkerHost(self.bus, engine, self.settings, stage, tuple(Stage))
            stop = asyncio.Event()
            self.engines[stage], self.hosts[stage], self.stops[stage] = engine, host, stop
            self.tasks[stage] = asyncio.create_task(host.run(stop))
            await until(lambda host=host: host.readiness()["registered"])  # type: ignore[misc]  # mypy on defaults

    async def dispatch(self, prefill: str, decode: str, **changes: Any) -> Work:
        request = make_request(arrival_s=time.time(), **changes)
        await self.bus.submit(request, 100)
        (claim,) = await self.bus.claim(request.tier, "planner", 1)
        decision = Decision(
            Verdict.ADMITTED, "test", 1, time.time(), 1000.0, 100.0, prefill_worker=prefill, decode_worker=decode
        )
        work = Work(request, decision, claim.attempt, claim.generated)
        assert await self.bus.dispatch(claim, work, self.token)
        return work

    async def ended(self, request_id: str) -> End:
        async with asyncio.timeout(10):
            while True:
                record = await self.bus.record(request_id)
                if record is not None and record.end is not None:
                    return record.end
                await asyncio.sleep(0.002)

    async def all_free(self) -> None:
        for engine in self.engines.values():
            await until(lambda engine=engine: engine.load().free_blocks == BLOCKS)  # type: ignore[misc]  # as above

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def test_a_request_placed_on_one_worker_stays_there() -> None:
    bench = Bench()
    await bench.start(Stage.PREFILL)
    name = bench.hosts[Stage.PREFILL].id
    work = await bench.dispatch(name, name)
    assert await bench.ended(work.request.id) == End(State.DONE, "length")
    record = await bench.bus.record(work.request.id)
    assert record is not None
    assert "decode_taken_s" not in record.notes
    await bench.close()


async def test_a_worker_has_worked_before_it_registers_and_leaves_nothing_of_it() -> None:
    bench = Bench()
    told: list[tuple[int, int]] = []
    beat, emit = bench.bus.beat, bench.bus.emit

    async def noted_beat(state: WorkerState, ttl_s: float) -> bool:
        told.append((state.running, len(refused)))
        return await beat(state, ttl_s)

    refused: list[bool] = []

    async def noted_emit(worker: str, frames: Sequence[Frame], busy_until_s: float = 0.0) -> Sequence[bool]:
        accepted = await emit(worker, frames, busy_until_s)
        refused.extend(not one for one in accepted)
        return accepted

    bench.bus.beat, bench.bus.emit = noted_beat, noted_emit  # type: ignore[method-assign]
    await bench.start(Stage.PREFILL)
    (running, frames), *_ = told
    assert running == 0
    assert frames > 0
    assert all(refused)
    await bench.all_free()
    assert not bench.hosts[Stage.PREFILL]._jobs
    await bench.close()


async def test_workers_that_start_together_beat_apart() -> None:
    bus, settings, registry = MemoryBus(), quick_settings(heartbeat_s=0.3), KvRegistry()
    beats: dict[str, list[float]] = {}
    beat = bus.beat

    async def noted(state: WorkerState, ttl_s: float) -> bool:
        beats.setdefault(state.id, []).append(time.monotonic())
        return await beat(state, ttl_s)

    bus.beat = noted  # type: ignore[method-assign]
    engines = [SimulatedEngine(settings, latency=QUICK, registry=registry, total_blocks=BLOCKS) for _ in range(12)]
    hosts = [WorkerHost(bus, engine, settings, Stage.PREFILL, tuple(Stage)) for engine in engines]
    tasks = [asyncio.create_task(host.run(asyncio.Event())) for host in hosts]
    await until(lambda: len(beats) == 12 and all(len(times) > 1 for times in beats.values()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    waits = [times[1] - times[0] for times in beats.values()]
    assert max(waits) - min(waits) > 0.1


async def test_a_worker_whose_rehearsal_is_refused_works_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = SimulatedEngine.generate

    def refusing(engine: SimulatedEngine, job: Job) -> AsyncIterator[Output]:
        if job.id.startswith("rehearsal"):
            raise EngineRefused("not this one")
        return generate(engine, job)

    monkeypatch.setattr(SimulatedEngine, "generate", refusing)
    bench = Bench()
    await bench.start(Stage.PREFILL)
    name = bench.hosts[Stage.PREFILL].id
    assert await bench.ended((await bench.dispatch(name, name)).request.id) == End(State.DONE, "length")
    await bench.close()


async def test_a_worker_asks_for_as_much_as_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.worker.host.SPARE_INTAKE", 1)
    bench = Bench(max_num_seqs=2)
    rooms: list[int] = []
    wait = bench.bus.wait

    async def noted(worker: str, after: Cursor, block_s: float, room: int = 0) -> Wake:
        rooms.append(room)
        return await wait(worker, after, block_s, room)

    bench.bus.wait = noted  # type: ignore[method-assign]
    await bench.start(Stage.PREFILL)
    name = bench.hosts[Stage.PREFILL].id
    works = [await bench.dispatch(name, name, sampling=Sampling(max_tokens=200)) for _ in range(4)]
    for work in works:
        assert await bench.ended(work.request.id) == End(State.DONE, "length")
    assert rooms[0] == 3
    assert min(rooms) == 0
    await bench.close()


async def test_work_that_comes_with_a_control_message_is_not_lost_when_the_queue_goes_away() -> None:
    bench = Bench(heartbeat_s=5.0)
    await bench.start(Stage.PREFILL)
    name = bench.hosts[Stage.PREFILL].id
    beat, wait, failed = bench.bus.beat, bench.bus.wait, 0

    async def failing(state: WorkerState, ttl_s: float) -> bool:
        nonlocal failed
        if state.known and not failed:
            failed += 1
            raise BusUnavailable("away")
        return await beat(state, ttl_s)

    async def together(worker: str, after: Cursor, block_s: float, room: int = 0) -> Wake:
        woken = await wait(worker, after, block_s, room)
        return woken._replace(controls=[Known("planner")]) if woken.work else woken

    bench.bus.beat, bench.bus.wait = failing, together  # type: ignore[method-assign]
    await bench.bus.send(name, KeepTrace("abc"))  # ends the wait that has begun
    await asyncio.sleep(0.01)
    assert await bench.ended((await bench.dispatch(name, name)).request.id) == End(State.DONE, "length")
    assert failed == 1
    await bench.close()


async def test_a_heartbeat_tells_how_long_kv_takes_to_be_pulled_by_those_who_pulled() -> None:
    bench = Bench()
    await bench.start()
    producer, consumer = (bench.hosts[stage].id for stage in Stage)
    for _ in range(3):
        work = await bench.dispatch(producer, consumer)
        await bench.ended(work.request.id)
    expected = pytest.approx(bench.engines[Stage.DECODE].transfer_s / len(work.request.prompt))
    states: dict[str, WorkerState | None] = {}

    async def told(name: str) -> float:
        states.update(await bench.bus.workers())
        state = states[name]
        assert state is not None
        return state.pull_s_per_token

    async with asyncio.timeout(10):
        while not await told(consumer):
            await asyncio.sleep(0.002)
    assert await told(consumer) == expected
    assert await told(producer) == 0
    await bench.close()


async def test_heartbeat_and_metrics_tell_how_fast_the_engine_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    load = SimulatedEngine.load
    monkeypatch.setattr(SimulatedEngine, "load", lambda engine: replace(load(engine), slowdown=1.7))
    bench = Bench()
    await bench.start(Stage.PREFILL)
    state = (await bench.bus.workers())[bench.hosts[Stage.PREFILL].id]
    assert state is not None
    assert state.slowdown == metrics.SLOWDOWN._value.get() == 1.7
    await bench.close()


async def test_kv_that_was_computed_again_is_no_pull() -> None:
    bench = Bench()
    await bench.start()
    host = bench.hosts[Stage.DECODE]
    work = await bench.dispatch(host.id, host.id)
    now_s = time.time()
    lost = HandOff("gone", {"key": "unknown"}, 100, now_s, now_s + 30.0)
    job = WorkJob(replace(work, hand_off=lost), Stage.DECODE, host.id, bench.engines[Stage.DECODE], host._outbox)
    await job.run()
    assert job.times.notes["recomputed"] == 1.0
    assert job.pulled_s is None
    await bench.close()


async def test_kv_of_a_request_cancelled_before_the_pull_is_freed_at_the_producer() -> None:
    bench = Bench(kv_lease_s=30.0)
    await bench.start(Stage.PREFILL)
    producer, engine = bench.hosts[Stage.PREFILL], bench.engines[Stage.PREFILL]
    work = await bench.dispatch(producer.id, "nobody-takes-this")
    await until(lambda: bool(producer._kept))
    assert engine.load().free_blocks < BLOCKS
    assert await bench.bus.end(work.request.id, End(State.CANCELLED, "client"))
    await bench.all_free()
    await bench.close()


async def test_a_hand_off_older_than_a_third_of_its_lease_is_prefilled_again_and_counted() -> None:
    bench = Bench()
    await bench.start()
    consumer = bench.hosts[Stage.DECODE]
    old = time.time() - 11.0
    stale = HandOff("gone", {"key": "unknown"}, 100, produced_s=old, expires_s=old + 30.0)
    truth_work = await bench.dispatch(consumer.id, consumer.id)
    await bench.ended(truth_work.request.id)
    truth = await bench.bus.record(truth_work.request.id)
    assert truth is not None
    request = make_request(arrival_s=time.time())
    await bench.bus.submit(request, 100)
    (claim,) = await bench.bus.claim(request.tier, "planner", 1)
    decision = replace(truth_work.decision, prefill_worker="p", decode_worker=consumer.id)
    work = Work(request, decision, claim.attempt)
    await bench.bus.dispatch(claim, work, bench.token)
    await taken(bench.bus, Stage.PREFILL, "p", 1)
    from common.messages import Frame

    await bench.bus.emit("p", [Frame(request.id, 1, 0, truth.generated[:1], time.time())])
    assert await bench.bus.hand_off("p", replace(work, generated=truth.generated[:1], hand_off=stale))
    await bench.ended(request.id)
    record = await bench.bus.record(request.id)
    assert record is not None
    assert record.generated == truth.generated
    assert record.notes["hand_off_dropped"] == 1.0
    _, controls, _ = await bench.bus.wait("p", START, 0.0)
    assert controls == [Cancel(request.id, 1, "hand_off_dropped")]
    await bench.close()


async def test_input_that_the_engine_refuses_ends_as_failed_with_its_reason() -> None:
    bench = Bench(max_model_len=64)
    await bench.start(Stage.PREFILL)
    name = bench.hosts[Stage.PREFILL].id
    work = await bench.dispatch(name, name, prompt=tuple(range(3, 200)))
    end = await bench.ended(work.request.id)
    assert (end.state, end.reason) == (State.FAILED, "refused_by_engine")
    await bench.close()


async def test_a_worker_that_was_declared_dead_stops() -> None:
    bench = Bench()
    await bench.start(Stage.PREFILL)
    await bench.bus.requeue(bench.hosts[Stage.PREFILL].id, bench.token)
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(bench.tasks[Stage.PREFILL], 5)


async def test_a_request_that_was_given_to_another_worker_is_aborted_here() -> None:
    bench = Bench()
    await bench.start(Stage.PREFILL)
    host = bench.hosts[Stage.PREFILL]
    work = await bench.dispatch(host.id, host.id, sampling=Sampling(max_tokens=2000))
    await until(lambda: bench.engines[Stage.PREFILL].load().free_blocks < BLOCKS)
    stored = bench.bus._records[work.request.id]
    stored.attempt += 1
    await bench.all_free()
    await bench.close()


async def test_a_drained_worker_leaves_and_closes() -> None:
    bench = Bench()
    await bench.start(Stage.PREFILL)
    host = bench.hosts[Stage.PREFILL]
    work = await bench.dispatch(host.id, host.id, sampling=Sampling(max_tokens=50))
    bench.stops[Stage.PREFILL].set()
    await asyncio.wait_for(bench.tasks[Stage.PREFILL], 10)
    assert await bench.ended(work.request.id) == End(State.DONE, "length")
    assert (await bench.bus.workers())[host.id] is None


def test_stages_are_parsed_and_a_wrong_one_is_an_error() -> None:
    assert stages("prefill, decode") == (Stage.PREFILL, Stage.DECODE)
    with pytest.raises(ValueError, match="train"):
        stages("train")
    with pytest.raises(ValueError, match="at least one"):
        stages("")
