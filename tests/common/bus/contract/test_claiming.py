from dataclasses import replace

from common.bus.interface import START, Bus, Claim, DeadLetter, Room
from common.messages import Decided, End, Frame, Record, Stage, State, Verdict
from tests.common.bus.steps import (
    CANCELLED,
    claimed,
    decision,
    decisions_told,
    dispatched,
    frames_told,
    lead,
    queued,
    stored,
    taken,
    work_of,
)


def ids(claims: list[Claim] | tuple[Claim, ...]) -> list[str]:
    return [claim.request.id for claim in claims]


async def test_claims_come_in_the_order_of_a_tier(bus: Bus) -> None:
    waiting = [(await queued(bus)).id for _ in range(5)]
    await lead(bus)
    assert ids([*await bus.claim("chat", "planner", 3), *await bus.claim("chat", "planner", 3)]) == waiting


async def test_a_claim_takes_no_more_than_asked_and_from_one_tier_only(bus: Bus) -> None:
    chat, code = [await queued(bus) for _ in range(3)], await queued(bus, tier="code")
    await lead(bus)
    assert ids(list(await bus.claim("chat", "planner", 2))) == [chat[0].id, chat[1].id]
    assert await bus.claim("chat", "planner", 0) == []
    assert ids(list(await bus.claim("code", "planner", 9))) == [code.id]


async def test_a_claim_carries_the_request(bus: Bus) -> None:
    request = await queued(bus)
    await lead(bus)
    (claim,) = await bus.claim("chat", "planner", 1)
    assert (claim.request, claim.attempt, claim.generated, claim.deferred_s) == (request, 1, (), None)


async def test_an_empty_tier_has_no_claims(bus: Bus) -> None:
    await lead(bus)
    assert await bus.claim("chat", "planner", 5) == []
    assert await bus.reclaim(["chat"], "planner") == []


async def test_what_ended_while_waiting_is_not_claimed(bus: Bus) -> None:
    gone, here = await queued(bus), await queued(bus)
    await bus.end(gone.id, CANCELLED)
    await lead(bus)
    assert ids(list(await bus.claim("chat", "planner", 5))) == [here.id]


async def test_a_deferral_is_told_once_and_kept(bus: Bus) -> None:
    claim, token = await claimed(bus)
    deferred = decision(None, None, Verdict.DEFERRED)
    assert await bus.note(claim, deferred, token)
    assert await decisions_told(bus) == [Decided(claim.request.id, 1, deferred)]
    (kept,) = await bus.reclaim(["chat"], "planner")
    assert kept.deferred_s == deferred.decided_s
    assert (await stored(bus, claim.request.id)).decision == deferred


async def test_a_request_is_deferred_since_its_first_deferral(bus: Bus) -> None:
    claim, token = await claimed(bus)
    for decided_s in (100.5, 200.5):
        await bus.note(claim, replace(decision(None, None, Verdict.DEFERRED), decided_s=decided_s), token)
    (kept,) = await bus.reclaim(["chat"], "planner")
    assert kept.deferred_s == 100.5


async def test_a_dispatch_of_an_older_attempt_leaves_the_present_one_alone(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.dispatch(claim, work_of(claim), token)
    await bus.requeue("p", token)
    assert not await bus.dispatch(claim, work_of(claim, prefill="q"), token)
    assert [again.attempt for again in await bus.claim("chat", "planner", 5)] == [2]


async def test_a_decision_on_an_ended_request_is_not_noted(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.end(claim.request.id, CANCELLED)
    assert not await bus.note(claim, decision(), token)
    assert await decisions_told(bus) == []


async def test_dispatch_moves_record_work_and_entry_together(bus: Bus) -> None:
    claim, token = await claimed(bus)
    work = work_of(claim)
    assert await bus.dispatch(claim, work, token)
    record = Record(claim.request, State.RUNNING, 1, work.decision, (), None, {}, "p", "d")
    assert await bus.record(claim.request.id) == record
    assert await bus.inflight("p") == [record]
    assert (await bus.depths(["chat"]))["chat"].waiting == 0
    assert await taken(bus, Stage.PREFILL, "p", 5) == [work]
    assert await decisions_told(bus) == [Decided(claim.request.id, 1, work.decision)]


async def test_a_repeated_dispatch_is_harmless_and_another_one_refused(bus: Bus) -> None:
    claim, token = await claimed(bus)
    assert await bus.dispatch(claim, work_of(claim), token)
    assert await bus.dispatch(claim, work_of(claim), token)
    assert not await bus.dispatch(claim, work_of(claim, prefill="q"), token)
    assert len(await taken(bus, Stage.PREFILL, "p", 5)) == 1
    assert await taken(bus, Stage.PREFILL, "q", 5) == []
    assert len(await decisions_told(bus)) == 1


async def test_an_ended_request_is_not_dispatched(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.end(claim.request.id, CANCELLED)
    assert not await bus.dispatch(claim, work_of(claim), token)
    assert await taken(bus, Stage.PREFILL, "p", 5) == []
    assert await bus.inflight("p") == []


async def test_a_dispatched_request_is_nobody_elses(bus: Bus) -> None:
    await dispatched(bus)
    await bus.resign("planner")
    await lead(bus, "other")
    assert await bus.claim("chat", "other", 5) == []
    assert await bus.reclaim(["chat"], "other") == []


async def test_a_new_leader_reclaims_what_the_old_one_held_in_order(bus: Bus) -> None:
    held = [(await queued(bus)).id for _ in range(3)]
    waiting = await queued(bus)
    await lead(bus)
    await bus.claim("chat", "planner", 3)
    await bus.resign("planner")
    await lead(bus, "other")
    assert ids(list(await bus.reclaim(["code", "chat"], "other"))) == held
    assert ids(list(await bus.claim("chat", "other", 9))) == [waiting.id]


async def test_a_reclaimed_request_can_be_dispatched(bus: Bus) -> None:
    await claimed(bus)
    await bus.resign("planner")
    token = await lead(bus, "other")
    (claim,) = await bus.reclaim(["chat"], "other")
    assert await bus.dispatch(claim, work_of(claim), token)


async def test_the_fourth_delivery_is_a_dead_letter(bus: Bus) -> None:
    claim, _ = await claimed(bus)
    deliveries = 1
    for planner in ("b", "c"):
        await bus.resign("planner" if deliveries == 1 else "b")
        await lead(bus, planner)
        deliveries += len(await bus.reclaim(["chat"], planner))
    assert deliveries == 3
    await bus.resign("c")
    await lead(bus, "d")
    assert await bus.reclaim(["chat"], "d") == []
    end = End(State.FAILED, "poison")
    assert (await stored(bus, claim.request.id)).end == end
    assert [(told.id, told.end) for told in await frames_told(bus)] == [(claim.request.id, end)]
    (letter,) = await bus.dead_letters()
    assert letter == DeadLetter(claim.request.id, "poison", letter.time_s)
    assert (await bus.depths(["chat"]))["chat"].waiting == 0


async def test_a_planner_that_asks_again_delivers_nothing_anew(bus: Bus) -> None:
    claim, _ = await claimed(bus)
    for _ in range(5):
        assert await bus.reclaim(["chat"], "planner") == [claim]


async def test_a_dispatch_to_a_buried_worker_goes_back_to_the_tier(bus: Bus) -> None:
    claim, token = await claimed(bus)
    await bus.requeue("p", token)
    assert not await bus.dispatch(claim, work_of(claim), token)
    assert ids(list(await bus.claim("chat", "planner", 5))) == [claim.request.id]
    assert await taken(bus, Stage.PREFILL, "p", 5) == []


async def test_reclaiming_wakes_no_reader_of_news(bus: Bus) -> None:
    await claimed(bus)
    cursor, *_ = await bus.progress(START, 0)
    await bus.reclaim(["chat"], "planner")
    assert await bus.progress(cursor, 0) == (cursor, [], False)


async def test_one_step_claims_each_tier_up_to_its_own_and_the_shared_room(bus: Bus) -> None:
    chat = [await queued(bus, tier="chat") for _ in range(4)]
    code = [await queued(bus, tier="code") for _ in range(4)]
    await lead(bus)
    got = await bus.claim_each({"chat": Room(1, 9), "idle": Room(5, 9), "code": Room(1, 2)}, 2, "planner")
    assert ids(list(got.claims)) == [*(one.id for one in chat[:3]), code[0].id]
    rest = await bus.claim_each({"chat": Room(0, 0), "code": Room(0, 2)}, 9, "planner")
    assert ids(list(rest.claims)) == [code[1].id, code[2].id]


async def test_a_claim_tells_until_when_workers_are_busy(bus: Bus) -> None:
    work, token = await dispatched(bus)
    assert (await bus.claim_each({}, 0, "planner")).busy_until_s == {}
    frame = Frame(work.request.id, work.attempt, 0, (7,), 1.0)
    await bus.emit("p", [frame], 1795247342.25)
    await bus.emit("p", [replace(frame, position=1)])
    assert (await bus.claim_each({}, 0, "planner")).busy_until_s == {"p": 1795247342.25}
    await bus.requeue("p", token)
    assert await bus.emit("p", [replace(frame, position=2)], 1795247343.5) == [False]
    assert (await bus.claim_each({}, 0, "planner")).busy_until_s == {}
