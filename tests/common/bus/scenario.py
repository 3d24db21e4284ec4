"""Any order of events between planners, workers and clients, and what must hold after each of them.

Token n of a request is 1000 + n whoever makes it, so that whatever is stored or told can be held against the truth.
"""

import asyncio
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from common.bus.interface import START, Bus, Claim
from common.codec import Tokens
from common.messages import End, Frame, HandOff, Request, State, Work
from tests.common.bus.steps import CANCELLED, DONE, TTL_S, decision
from tests.factories import make_request

WORKERS = ("a", "b", "c")

Op = tuple[str, int, int, int]
"""What happens, and three numbers that say to whom."""

ops = st.lists(
    st.tuples(
        st.sampled_from(("dispatch", "emit", "emit", "emit", "replay", "end", "hand_off", "die", "cancel", "lead")),
        st.integers(0, 2),
        st.integers(0, 5),
        st.integers(0, 3),
    ),
    max_size=40,
)


def truth(position: int, count: int) -> Tokens:
    return tuple(range(1000 + position, 1000 + position + count))


@dataclass
class Scenario:
    """Three requests and three workers, each of which gets a new id when it has died."""

    bus: Bus
    requests: list[Request] = field(default_factory=list)
    claims: dict[str, Claim] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WORKERS, 1))
    sent: list[tuple[str, Frame]] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    planner: str = "planner 0"
    token: int = 0

    async def start(self) -> None:
        self.token = await self.bus.lead(self.planner, TTL_S) or 0
        for number in range(3):
            self.requests.append(request := make_request(id=f"{number}", tier=("chat", "code")[number % 2]))
            await self.bus.submit(request, 10)
            self.ends[request.id] = 0

    def worker(self, number: int) -> str:
        name = WORKERS[number % len(WORKERS)]
        return f"{name}{self.lives[name]}"

    async def step(self, op: Op) -> object:
        """Let one thing happen; what comes back must be the same for every bus."""
        kind, who, x, y = op
        request = self.requests[who]
        return await getattr(self, f"_{kind}")(request, x, y)

    async def _dispatch(self, request: Request, x: int, y: int) -> object:
        for tier in ("chat", "code"):
            for claim in await self.bus.claim(tier, self.planner, 1 + x):
                self.claims[claim.request.id] = claim
        held = self.claims.get(request.id)
        if held is None:
            return None
        work = Work(request, decision(self.worker(x), self.worker(y)), held.attempt, held.generated)
        if await self.bus.dispatch(held, work, self.token):
            self.works[request.id] = work
        del self.claims[request.id]
        return await self._take(self.worker(x), 1 + y)

    async def _take(self, worker: str, room: int) -> object:
        return [(stage, work.request.id) for stage, work in (await self.bus.wait(worker, START, 0, room)).work]

    async def _emit(self, request: Request, x: int, y: int, end: End | None = None) -> object:
        work, record = self.works.get(request.id), await self.bus.record(request.id)
        if work is None or record is None:
            return None
        position = max(0, len(record.generated) + (0 if x < 3 else x - 4))
        made = Frame(request.id, work.attempt, position, truth(position, y), 101.0, end, {f"note{x}": float(y)})
        return await self._send(self._holder(work), made)

    async def _end(self, request: Request, x: int, y: int) -> object:
        return await self._emit(request, x, y, DONE)

    async def _replay(self, _request: Request, x: int, y: int) -> object:
        if not self.sent:
            return None
        return await self._send(*self.sent[(7 * x + y) % len(self.sent)])

    async def _send(self, worker: str, made: Frame) -> bool:
        before = await self.bus.record(made.id)
        (accepted,) = await self.bus.emit(worker, [made])
        self.sent.append((worker, made))
        if accepted and made.end:
            assert before
            assert not before.state.ended
            self.ends[made.id] += 1
        return accepted

    def _holder(self, work: Work) -> str:
        return (work.decision.decode_worker if work.hand_off else work.decision.prefill_worker) or ""

    async def _hand_off(self, request: Request, x: int, y: int) -> object:
        work = self.works.get(request.id)
        if work is None or work.hand_off:
            return None
        target = replace(work.decision, decode_worker=self.worker(y))
        moved = replace(work, decision=target, hand_off=HandOff("p", {}, 100, 1.0, 2.0))
        done = await self.bus.hand_off(self._holder(work), moved)
        if done:
            self.works[request.id] = moved
        return done, await self._take(self.worker(y), 1 + x)

    async def _die(self, _request: Request, x: int, _y: int) -> object:
        worker, name = self.worker(x), WORKERS[x % len(WORKERS)]
        self.lives[name] += 1
        return sorted(await self.bus.requeue(worker, self.token, max_deaths=4))

    async def _cancel(self, request: Request, x: int, _y: int) -> object:
        done = await self.bus.end(request.id, CANCELLED, attempt=None if x < 3 else x)
        self.ends[request.id] += done
        return done

    async def _lead(self, _request: Request, x: int, _y: int) -> object:
        await self.bus.resign(self.planner)
        self.planner = f"planner {x}"
        self.token = await self.bus.lead(self.planner, TTL_S) or 0
        self.claims = {
            claim.request.id: claim
            for claim in await self.bus.reclaim(["chat", "code"], self.planner, max_deliveries=6)
        }
        return sorted((claim.request.id, claim.attempt, claim.generated) for claim in self.claims.values())

    async def check(self) -> list[object]:
        """What must hold at any time; returns what every bus must agree on."""
        _, replies = await self.bus.replies("api", START, 0)
        frames = [reply for reply in replies if isinstance(reply, Frame)]
        seen: list[object] = []
        for request in self.requests:
            record = await self.bus.record(request.id)
            assert record
            assert record.generated == truth(0, len(record.generated))
            text: list[int] = []
            for part in (frame for frame in frames if frame.id == request.id):
                assert part.position == len(text)
                text += part.tokens
            assert tuple(text) == record.generated
            ends = [frame.end for frame in frames if frame.id == request.id and frame.end]
            assert ends == ([record.end] if record.end else [])
            assert record.state.ended == (record.end is not None)
            if record.state in (State.DONE, State.CANCELLED):
                assert self.ends[request.id] == 1
            else:
                assert self.ends[request.id] == 0
            seen.append(replace(record, notes=dict(sorted(record.notes.items()))))
        await self._check_places()
        return seen

    async def _check_places(self) -> None:
        """Each request that has not ended is in exactly one place: in its tier, or with one worker."""
        places = []
        for name in WORKERS:
            for life in range(1, self.lives[name] + 1):
                places += [record.request.id for record in await self.bus.inflight(f"{name}{life}")]
        depths = await self.bus.depths(["chat", "code"])
        records = [await self.bus.record(request.id) for request in self.requests]
        running = [record.request.id for record in records if record and record.state is State.RUNNING]
        waiting = [record.request.id for record in records if record and record.state is State.QUEUED]
        assert sorted(places) == sorted(running)
        assert sum(depth.waiting for depth in depths.values()) == len(waiting)


async def play(bus: Bus, events: list[Op]) -> list[object]:
    """Let everything happen, checking after each event; returns all that was seen on the way."""
    scenario, seen = Scenario(bus), list[object]()
    async with asyncio.timeout(30):
        await scenario.start()
        for op in events:
            seen.append(await scenario.step(op))
            seen.append(await scenario.check())
    return seen
