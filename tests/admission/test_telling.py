"""The queue is told of a plan while the next one is made, and nothing is lost if it can't be told."""

import asyncio

import pytest

from admission.plan import ClusterState, Plan
from admission.planning import Lead, Planning
from admission.service import AdmissionService
from common.bus.interface import Claim
from common.bus.memory import MemoryBus
from common.errors import BusUnavailable
from common.messages import Decision, Record, Request, State, Verdict, Work
from common.tiers import load_tiers
from tests.common.bus.steps import heartbeat
from tests.factories import arriving
from tests.pipeline import quick_settings, running_pipeline, until


class Slow(MemoryBus):
    """Answers a dispatch only when ``answers`` is set, and neither dispatches nor notes while it is ``away``."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()
        self.away = False
        self.sent: list[str] = []

    async def dispatch(self, claim: Claim, work: Work, token: int) -> bool:
        self.sent.append(work.request.id)
        await self.answers.wait()
        if self.away:
            raise BusUnavailable("away")
        return await super().dispatch(claim, work, token)

    async def note(self, claim: Claim, decision: Decision, token: int) -> bool:
        if self.away:
            raise BusUnavailable("away")
        return await super().note(claim, decision, token)


class DeferAll:
    """A policy."""

    def warm_up(self) -> None:
        pass

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        defer = {one.id: Decision(Verdict.DEFERRED, "test", state.cycle, now_s) for one in state.held}
        return Plan({}, {} if state.held[0].deferred else defer, {})


async def leading(bus: MemoryBus) -> tuple[Planning, Lead]:
    """A planner that knows a worker."""
    token = await bus.lead("planner", 60.0)
    assert token is not None
    await bus.beat(heartbeat("w"), 60.0)
    planning = AdmissionService(bus, quick_settings(), load_tiers(), "planner").planning
    planning.cluster.beat(await bus.workers())
    return planning, Lead(token)


async def submitted(bus: MemoryBus, planning: Planning) -> Request:
    request = arriving()
    await bus.submit(request, 100)
    planning.arrived()
    return request


async def test_the_next_plan_is_made_before_the_queue_has_answered_and_told_after_it() -> None:
    bus = Slow()
    planning, lead = await leading(bus)
    bus.answers.clear()
    first = await submitted(bus, planning)
    await planning.plan_once(lead)
    assert first.id not in planning.window
    assert [running.id for running in planning.cluster.running] == [first.id]
    second = await submitted(bus, planning)
    next_plan = asyncio.create_task(planning.plan_once(lead))
    await until(lambda: planning.cycle == 2)
    assert bus.sent == [first.id]
    bus.answers.set()
    await next_plan
    await until(lambda: planning.telling.ended)
    assert bus.sent == [first.id, second.id]
    assert {(await _record(bus, request)).state for request in (first, second)} == {State.RUNNING}


async def test_what_could_not_be_dispatched_is_claimed_and_sent_again() -> None:
    bus = Slow()
    planning, lead = await leading(bus)
    request = await submitted(bus, planning)
    bus.away = True
    await planning.plan_once(lead)
    await until(lambda: planning.telling.ended)
    with pytest.raises(BusUnavailable):
        await planning.plan_once(lead)
    bus.away = False
    await planning.plan_once(lead)
    await until(lambda: planning.telling.ended)
    assert (await _record(bus, request)).state is State.RUNNING
    assert bus.sent == [request.id] * 2


async def test_what_could_not_be_dispatched_is_no_load() -> None:
    bus = Slow()
    planning, lead = await leading(bus)
    await submitted(bus, planning)
    bus.away = True
    await planning.plan_once(lead)
    await until(lambda: planning.telling.ended)
    with pytest.raises(BusUnavailable):
        await planning.plan_once(lead)
    assert len(planning.cluster.running) == 1  # the queue may have heard it
    bus.away = False
    planning.use(DeferAll())
    await planning.plan_once(lead)
    assert not list(planning.cluster.running)


async def test_who_could_not_be_told_that_he_is_deferred_is_told_later() -> None:
    bus = Slow()
    planning, lead = await leading(bus)
    planning.use(DeferAll())
    bus.away = True
    request = await submitted(bus, planning)
    await planning.plan_once(lead)
    await until(lambda: planning.telling.ended)
    with pytest.raises(BusUnavailable):
        await planning.plan_once(lead)
    assert (await _record(bus, request)).decision is None
    bus.away = False
    for _ in range(2):
        await planning.plan_once(lead)
    await until(lambda: planning.telling.ended)
    decision = (await _record(bus, request)).decision
    assert decision is not None
    assert decision.reason == "test"


async def test_a_planner_that_is_stopped_while_it_tells_leaves_requests_to_its_successor() -> None:
    bus = Slow()
    bus.answers.clear()
    async with running_pipeline(bus) as pipeline:
        request = arriving()
        await bus.submit(request, 100)
        await until(lambda: bool(bus.sent))
        pipeline._background[0].cancel()
        await asyncio.gather(pipeline._background[0], return_exceptions=True)
        bus.answers.set()
        await pipeline.add_planner("successor")
        assert (await pipeline.ended(request.id)).state is State.DONE


async def _record(bus: MemoryBus, request: Request) -> Record:
    record = await bus.record(request.id)
    assert record is not None
    return record
