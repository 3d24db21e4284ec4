"""Which tokens may wait in a worker for others to travel with."""

from dataclasses import replace

from common.bus.memory import MemoryBus
from common.engine.interface import Output
from common.engine.simulated import SimulatedEngine
from common.messages import Decision, Stage, Verdict, Work
from common.worker.job import WorkJob
from common.worker.outbox import Outbox
from tests.factories import make_request
from tests.pipeline import QUICK, quick_settings

LINGER_S = 0.02


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def job_with(clock: Clock, verdict: Verdict = Verdict.ADMITTED) -> WorkJob:
    request = replace(make_request(), arrival_s=100.0)
    decision = Decision(verdict, "test", 1, 100.0, 1000.0, 100.0, decode_worker="w")
    engine = SimulatedEngine(quick_settings(), latency=QUICK)
    outbox = Outbox(MemoryBus(), "w", lambda _id: None)
    return WorkJob(Work(request, decision, 1), Stage.PREFILL, "w", engine, outbox, clock, LINGER_S)


def wait_s(job: WorkJob, clock: Clock, at_s: float, *tokens: int, finish: str | None = None) -> float:
    clock.now_s = at_s
    return job._wait_s(job._frame(Output(tokens, finish)))


async def test_a_first_and_a_last_token_never_wait() -> None:
    clock = Clock()
    job = job_with(clock)
    assert wait_s(job, clock, 100.1, 7) == 0.0
    assert wait_s(job, clock, 100.11, 7) == LINGER_S
    assert wait_s(job, clock, 100.12, 7, finish="stop") == 0.0


async def test_a_token_that_is_due_does_not_wait() -> None:
    clock = Clock()
    job = job_with(clock)
    for n in range(10):
        wait_s(job, clock, 100.5 + 0.01 * n, 7)
    job.times.token_times_s[-1] = 102.04  # token 11 is due at 101 s and ten times 0.1 s, token 12 at 102.1 s
    assert wait_s(job, clock, 102.05, 7) == 0.0
    assert wait_s(job, clock, 102.055, 7) == LINGER_S


async def test_a_token_does_not_wait_for_a_step_that_comes_later_anyhow() -> None:
    clock = Clock()
    job = job_with(clock)
    wait_s(job, clock, 100.1, 7)
    assert wait_s(job, clock, 100.1 + 2 * LINGER_S, 7) == 0.0


async def test_without_a_promise_nothing_is_due() -> None:
    clock = Clock()
    job = job_with(clock, Verdict.DEFERRED)
    wait_s(job, clock, 300.0, 7)
    assert wait_s(job, clock, 300.01, 7) == LINGER_S
