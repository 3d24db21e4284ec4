import pytest

from common.bus.interface import Bus
from common.errors import LeadershipLost
from tests.common.bus.steps import TTL_S, claimed, decision, dispatched, eventually, lead, queued, stored, work_of


async def test_one_planner_leads_and_keeps_its_token(bus: Bus) -> None:
    token = await lead(bus, "a")
    assert await bus.lead("b", TTL_S) is None
    assert await bus.lead("a", TTL_S) == token


async def test_anyone_can_ask_who_leads(bus: Bus) -> None:
    assert await bus.leader() is None
    await lead(bus, "a")
    assert await bus.leader() == "a"
    await bus.resign("a")
    assert await bus.leader() is None


async def test_a_new_leader_gets_a_higher_token(bus: Bus) -> None:
    token = await lead(bus, "a")
    await bus.resign("a")
    assert await lead(bus, "b") > token


async def test_only_the_leader_can_resign(bus: Bus) -> None:
    await lead(bus, "a")
    await bus.resign("b")
    assert await bus.lead("b", TTL_S) is None


async def test_another_planner_leads_once_the_leader_is_silent(bus: Bus) -> None:
    token = await bus.lead("a", 0.02)
    assert token is not None
    newer = await eventually(lambda: bus.lead("b", TTL_S), lambda answer: answer is not None)
    assert newer is not None
    assert newer > token


async def test_a_leader_that_nobody_replaced_keeps_its_token(bus: Bus) -> None:
    token = await lead(bus, "a")
    await bus.resign("a")
    assert await lead(bus, "a") == token


async def test_a_replaced_planner_changes_nothing(bus: Bus) -> None:
    claim, stale = await claimed(bus)
    waiting = await queued(bus)
    await bus.resign("planner")
    await lead(bus, "other")
    with pytest.raises(LeadershipLost):
        await bus.claim("chat", "planner", 1)
    with pytest.raises(LeadershipLost):
        await bus.reclaim(["chat"], "planner")
    with pytest.raises(LeadershipLost):
        await bus.note(claim, decision(), stale)
    with pytest.raises(LeadershipLost):
        await bus.dispatch(claim, work_of(claim), stale)
    assert await bus.claim("chat", "other", 9) != []
    assert (await stored(bus, claim.request.id)).decision is None
    assert (await stored(bus, waiting.id)).attempt == 1


async def test_a_replaced_planner_can_not_bury_a_worker(bus: Bus) -> None:
    work, stale = await dispatched(bus)
    await bus.resign("planner")
    await lead(bus, "other")
    with pytest.raises(LeadershipLost):
        await bus.requeue("p", stale)
    assert [record.request.id for record in await bus.inflight("p")] == [work.request.id]


async def test_nobody_claims_before_somebody_leads(bus: Bus) -> None:
    await queued(bus)
    with pytest.raises(LeadershipLost):
        await bus.claim("chat", "planner", 1)
