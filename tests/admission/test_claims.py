"""When a plan asks the queue for requests: whenever there may be some, and else it costs nobody anything."""

import time
from collections.abc import Mapping

import pytest

from admission.planning import Lead, Planning
from admission.service import AdmissionService
from common.bus.interface import Claimed, Room
from common.bus.memory import MemoryBus
from common.errors import BusUnavailable
from common.settings import Settings
from common.tiers import load_tiers
from tests.factories import make_request


class Asked(MemoryBus):
    """Counts how often it was asked, and may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0
        self.away = False

    async def claim_each(self, rooms: Mapping[str, Room], shared: int, planner: str) -> Claimed:
        self.times += 1
        if self.away:
            raise BusUnavailable("away")
        return await super().claim_each(rooms, shared, planner)


async def leading(bus: MemoryBus, settings: Settings | None = None) -> tuple[Planning, Lead]:
    token = await bus.lead("planner", 10.0)
    assert token is not None
    return AdmissionService(bus, settings or Settings(), load_tiers(), "planner").planning, Lead(token)


async def test_only_arrivals_make_an_idle_planner_ask() -> None:
    bus = Asked()
    planning, lead = await leading(bus)
    for _ in range(3):
        await planning.plan_once(lead)
    assert bus.times == 1
    planning.arrived()
    await planning.plan_once(lead)
    assert bus.times == 2


async def test_a_small_window_does_not_make_an_idle_planner_ask() -> None:
    bus = Asked()
    planning, lead = await leading(bus, Settings(window=4))
    for _ in range(3):
        await planning.plan_once(lead)
    assert bus.times == 1


async def test_it_asks_again_while_something_is_held_and_after_an_outage() -> None:
    bus = Asked()
    planning, lead = await leading(bus)
    request = make_request(arrival_s=time.time())
    await bus.submit(request, 10)
    bus.away = True
    with pytest.raises(BusUnavailable):
        await planning.plan_once(lead)
    bus.away = False
    await planning.plan_once(lead)
    assert request.id in planning.window  # there is no worker
    await planning.plan_once(lead)
    planning.cancelled(request.id)
    await planning.plan_once(lead)
    assert bus.times == 3


async def test_it_asks_again_where_there_was_no_room_for_all() -> None:
    bus = Asked()
    planning, lead = await leading(bus, Settings(window=8))
    requests = [make_request(id=f"many{number}", arrival_s=time.time()) for number in range(20)]
    for request in requests:
        await bus.submit(request, 100)
    await planning.plan_once(lead)
    held = [request.id for request in requests if request.id in planning.window]
    assert 0 < len(held) < len(requests)
    for request_id in held:
        planning.cancelled(request_id)
    await planning.plan_once(lead)
    assert len(planning.window) > 0
