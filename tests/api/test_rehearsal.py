"""An api serves requests of its own before it says that it is ready."""

from collections.abc import Sequence

from api.rehearsal import TENANT
from common.bus.interface import Submitted
from common.bus.memory import MemoryBus
from common.errors import BusUnavailable
from common.messages import Request, State
from tests.api.conftest import Api, Serve
from tests.api.faults import FaultyBus
from tests.api.pipeline import deferred, eventually
from tests.api.test_health import ready, wait_for_relay


class Submissions(MemoryBus):
    """Remembers what was submitted; ``led`` is whether a planner is seen to lead."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.led = True

    async def leader(self) -> str | None:
        return await super().leader() if self.led else None

    async def submit(self, request: Request, max_queued: int) -> Submitted:
        self.requests.append(request)
        return await super().submit(request, max_queued)


class FullBus(MemoryBus):
    """Has no room."""

    async def submit(self, request: Request, max_queued: int) -> Submitted:
        return Submitted.FULL


async def states(bus: MemoryBus, requests: Sequence[Request]) -> list[State]:
    records = [await bus.record(request.id) for request in requests]
    return [record.state for record in records if record is not None]


def done(api: Api) -> bool:
    return bool(api.state.rehearsal.done)


async def test_an_api_is_ready_once_its_own_requests_were_served(serve: Serve) -> None:
    bus = Submissions()
    async with serve(bus=bus, rehearsals=2) as api:
        await eventually(lambda: done(api))
        assert await ready(api) == (200, [])
        assert [request.tenant for request in bus.requests] == [TENANT] * 2
        assert await states(bus, bus.requests) == [State.DONE] * 2


async def test_it_waits_for_the_rest_of_the_pipeline(serve: Serve) -> None:
    bus = Submissions()
    bus.led = False
    async with serve(bus=bus, rehearsals=1) as api:
        await wait_for_relay(api)
        assert await ready(api) == (503, ["planner", "rehearsed"])
        assert bus.requests == []
        bus.led = True
        await eventually(lambda: done(api))
        assert await ready(api) == (200, [])


async def test_requests_that_are_refused_end_the_rehearsal_too(serve: Serve) -> None:
    async with serve(bus=FullBus(), rehearsals=2) as api:
        await eventually(lambda: done(api))


async def test_an_api_whose_queue_is_away_rehearses_when_it_is_back(serve: Serve) -> None:
    bus = FaultyBus()
    bus.down = BusUnavailable
    async with serve(bus=bus, rehearsals=1) as api:
        assert not done(api)
        bus.down = None
        await eventually(lambda: done(api))


async def test_an_api_that_stops_while_it_rehearses_ends_its_request(serve: Serve) -> None:
    bus = Submissions()
    async with serve(bus=bus, rehearsals=1, decide=deferred) as api:
        await eventually(lambda: bool(bus.requests))
        assert not done(api)
    assert await states(bus, bus.requests) == [State.CANCELLED]
