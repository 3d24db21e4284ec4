"""Open-loop load: requests are sent when they are due, whatever has become of those before them."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from bench.outcome import Outcome
from bench.real.backends import Backend
from bench.real.calibration import objective_of
from bench.real.job import FIRST_TOKEN, VOCABULARY, Answer, AnswerError, Job
from bench.saying import say
from bench.workloads.item import Item
from common.messages import Slo, Verdict
from common.slo import TOLERANCE

LEAD_S = 0.2
"""From the start of a run to its first arrival at the earliest."""
DRAIN_S = 20.0
GLANCE_S = 0.25
STOOD_STILL_S = 0.1
RUNS = 3
_PLAYED = itertools.count()
"""No run sends another's prompts: servers live on between runs, and would have them in their prefix cache."""


@dataclass
class Sent:
    """A request of a run; ``arrival_s`` is when it was due, and latency counts from there."""

    item: Item
    slo: Slo | None
    arrival_s: float
    answer: Answer = field(default_factory=Answer)
    ended_s: float | None = None
    sent_s: float | None = None

    def outcome(self, promises: bool) -> Outcome:
        """What became of it; a system that ``promises`` but has said nothing has not admitted it."""
        verdicts = self.answer.verdicts
        verdict = verdicts[-1] if verdicts else Verdict.DEFERRED if promises else Verdict.ADMITTED
        deferred = Verdict.DEFERRED in verdicts
        return Outcome(
            item=self.item,
            objective=objective_of(self.slo, self.arrival_s),
            verdict=verdict,
            token_times_s=tuple(self.answer.token_times_s),
            arrival_s=self.arrival_s,
            ended_s=self.ended_s,
            promoted=deferred and verdict is Verdict.ADMITTED,
            deferred=deferred,
            predicted_ttft_s=self.answer.predicted_ttft_s,
            predicted_tpot_s=self.answer.predicted_tpot_s,
        )

    def lost(self, promises: bool, now_s: float) -> bool:
        """Whether it is certain by now that it does not attain its SLO."""
        if self.slo is None:
            return False
        if self.ended_s is not None:
            return not self.outcome(promises).attained()
        assert self.slo.ttft_ms is not None
        due_s = self.arrival_s + self.slo.ttft_ms / 1e3 * (1 + TOLERANCE)
        return (self.answer.token_times_s or [now_s])[0] > due_s


@dataclass(frozen=True, slots=True)
class Load:
    """A run's requests with their SLOs. ``most_lost`` ends the run as soon as more are lost for certain."""

    items: Sequence[Item]
    slos: Sequence[Slo | None]
    seed: int
    drain_s: float = DRAIN_S
    most_lost: int | None = None


async def play(load: Load, backend: Backend) -> list[Sent]:
    """Run the load; requests that have not ended ``drain_s`` after the last arrival are cancelled."""
    return await _Run(load, backend).play()


class _Run:
    def __init__(self, load: Load, backend: Backend) -> None:
        self._load = load
        self._backend = backend
        self._rng = random.Random(f"{load.seed}-{next(_PLAYED)}")
        self._start_s = time.time() + LEAD_S
        first_s = min(item.arrival_s for item in load.items)
        self._sent = [
            Sent(item, slo, self._start_s + item.arrival_s - first_s)
            for item, slo in zip(load.items, load.slos, strict=True)
        ]
        self._prompts = [random_prompt(self._rng, item.prompt_tokens) for item in load.items]
        self._sessions: dict[str, list[int]] = {}
        for number, item in enumerate(load.items):
            self._sessions.setdefault(item.session, []).append(number)

    async def play(self) -> list[Sent]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0)
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0), timeout=timeout, read_bufsize=2**18
        ) as http:
            sessions = [asyncio.create_task(self._session(http, numbers)) for numbers in self._sessions.values()]
            over = asyncio.gather(*sessions, return_exceptions=True)
            watch = asyncio.create_task(self._hopeless())
            last_s = max(sent.arrival_s for sent in self._sent)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(last_s + self._load.drain_s - time.time()):
                    await asyncio.wait((over, watch), return_when=asyncio.FIRST_COMPLETED)
            watch.cancel()
            for task in sessions:
                task.cancel()
            await asyncio.gather(*sessions, return_exceptions=True)
        return self._sent

    async def _session(self, http: aiohttp.ClientSession, numbers: Sequence[int]) -> None:
        """Rounds that follow the one before wait for its end, all others for their time."""
        ended_s = 0.0
        for place, number in enumerate(numbers):
            sent = self._sent[number]
            if place and sent.item.after_s is not None:
                sent.arrival_s = max(sent.arrival_s, ended_s + sent.item.after_s)
            await asyncio.sleep(max(0.0, sent.arrival_s - time.time()))
            in_session = len(numbers) > 1
            job = Job(
                number,
                self._prompts[number],
                sent.item.output_tokens,
                sent.slo,
                session=sent.item.session if in_session else None,
                last_round=in_session and place == len(numbers) - 1,
            )
            await self._ask(http, job, sent)
            ended_s = time.time()

    async def _ask(self, http: aiohttp.ClientSession, job: Job, sent: Sent) -> None:
        sent.sent_s = time.time()
        try:
            await self._backend.ask(http, job, sent.answer)
        except (AnswerError, aiohttp.ClientError) as error:
            sent.answer.error = f"{type(error).__name__}: {error}"
        sent.ended_s = time.time()

    async def _hopeless(self) -> None:
        """Return once more are lost than may be."""
        while self._load.most_lost is None or self._lost() <= self._load.most_lost:
            await asyncio.sleep(GLANCE_S)

    def _lost(self) -> int:
        now_s = time.time()
        return sum(sent.lost(self._backend.promises, now_s) for sent in self._sent if sent.arrival_s <= now_s)


def random_prompt(rng: random.Random, tokens: int) -> list[int]:
    """Random tokens, so that no prefix is cached."""
    return rng.choices(range(FIRST_TOKEN, VOCABULARY), k=tokens)


def undisturbed(run: Callable[[], list[Sent]], set_aside: Callable[[list[Sent], float], None]) -> list[Sent]:
    """A run in which no request was sent :data:`STOOD_STILL_S` late, or the last of :data:`RUNS`.

    The client needs 4 % of a CPU, so where it is as late the machine is taken to have been held, as virtual ones are
    now and then. Whatever it was, ``set_aside`` is told of each run that is repeated, and by how much it was late.
    """
    sent = run()
    for left in range(RUNS - 1, 0, -1):
        late_s = max((one.sent_s - one.arrival_s for one in sent if one.sent_s is not None), default=0.0)
        if late_s <= STOOD_STILL_S:
            break
        say(f"a request was sent {late_s:.2f} s late: the run is repeated, {left} times at most")
        set_aside(sent, late_s)
        sent = run()
    return sent


def spans_s(sent: Sequence[Sent]) -> float:
    """Seconds within which requests arrived."""
    times = [one.arrival_s for one in sent]
    return max(times) - min(times) or 1.0


async def probe(backend: Backend, seconds: float = 60.0, ready: Callable[[Answer], bool] | None = None) -> None:
    """Return when each server has answered a short request: what was cancelled before is out of its way.

    ``ready`` may ask for another try. Raises TimeoutError.
    """
    async with asyncio.timeout(seconds), aiohttp.ClientSession() as http:
        for target in backend.targets:
            while True:
                answer = Answer()
                await target.ask(http, Job(0, [FIRST_TOKEN] * 8, 2, Slo(1e6, None, 1e6)), answer)
                if ready is None or ready(answer):
                    break
                await asyncio.sleep(GLANCE_S)
