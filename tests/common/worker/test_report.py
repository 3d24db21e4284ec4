"""What a worker tells of a job: slack counts by the stage that each token belongs to."""

import asyncio
from dataclasses import replace

from common.bus.memory import MemoryBus
from common.codec import Tokens
from common.engine.simulated import SimulatedEngine
from common.latency_model import LatencyModel, Piece
from common.messages import Decision, HandOff, Stage, Verdict, Work
from common.slo import Objective
from common.telemetry import names
from common.worker import report
from common.worker.job import WorkJob, objective_of
from common.worker.outbox import Outbox
from tests.factories import make_request
from tests.pipeline import QUICK, quick_settings

START, END = 5, 7
STEPS = LatencyModel((Piece(2e-7, 0.0, 1e-3),))
"""Nearly all of an iteration is its fixed cost, so that only its tokens are bounded."""


async def done(arrival_s: float, times_s: list[float], tokens: Tokens, **work: object) -> WorkJob:
    request = make_request(arrival_s=arrival_s, thinking_start=START, thinking_end=END)
    decision = Decision(Verdict.ADMITTED, "test", 1, arrival_s, 1000.0, 100.0, thinking_tpot_ms=30.0)
    engine = SimulatedEngine(quick_settings(), latency=QUICK)
    outbox = Outbox(MemoryBus(), "w", lambda _id: None)
    job = WorkJob(Work(request, decision, 1, **work), Stage.PREFILL, "w", engine, outbox)  # type: ignore[arg-type]
    job._generated += tokens
    job.times.token_times_s += times_s
    return job


async def due_s(job: WorkJob) -> list[float]:
    objective = objective_of(job.work)
    assert objective is not None
    events = report.slack_events(objective, job)
    return [time_s + float(attributes[names.SLACK_MS]) / 1e3 for _, time_s, attributes in events]  # type: ignore[arg-type]


PROMISE = Objective(100.0, 1.0, 0.1, 0.03)


async def test_tokens_are_due_at_the_pace_of_their_stage() -> None:
    tokens = (START, *[9] * 13, END, *[9] * 15)
    job = await done(100.0, [100.5 + 0.01 * n for n in range(30)], tokens)
    expected = [PROMISE.token_due_s(n, 100.5, 15) for n in (10, 20, 30)]
    assert [round(value, 6) for value in await due_s(job)] == [round(value, 6) for value in expected]


async def test_tokens_after_a_hand_off_are_due_from_the_first_one_elsewhere() -> None:
    hand_off = HandOff("p", {}, 100, 101.5, 131.5)
    job = await done(
        100.0, [102.0 + n for n in range(9)], (9,) * 9, generated=(9,), hand_off=hand_off, first_token_s=101.5
    )
    assert [round(value, 6) for value in await due_s(job)] == [round(PROMISE.token_due_s(10, 101.5, 0), 6)]


async def test_a_prefill_span_tells_chunks_and_the_first_token() -> None:
    outbox, engine = Outbox(MemoryBus(), "w", lambda _id: None), SimulatedEngine(quick_settings(), latency=STEPS)
    running = asyncio.create_task(outbox.run())
    await engine.start()
    prompt = tuple(20 + n % 500 for n in range(quick_settings().max_num_batched_tokens + 10))
    request = replace(make_request(), prompt=prompt)
    decision = Decision(Verdict.ADMITTED, "test", 1, request.arrival_s, 1000.0, 100.0, decode_worker="w")
    job = WorkJob(Work(request, decision, 1), Stage.PREFILL, "w", engine, outbox)
    await job.run()
    await engine.close()
    running.cancel()
    *chunks, first = report.prefill_events(job.times)
    assert [(name, tags[names.POSITION]) for name, _, tags in chunks] == [
        (names.CHUNK, len(prompt) - 10),
        (names.CHUNK, len(prompt)),
    ]
    assert first == (names.FIRST_TOKEN, job.times.token_times_s[0], {})
