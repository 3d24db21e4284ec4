import asyncio
from collections.abc import AsyncIterator

import pytest

from bench.metrics import report
from bench.real.backends import Product, Stock
from bench.real.load import Load, Sent, play, probe, undisturbed
from bench.real.routing import make_router
from common.messages import Slo, Verdict
from tests.bench.real.server import EASY, REFUSED, Body, item, serving

IMPOSSIBLE = Slo(1e-3, None, 1e-3)


def stock(url: str) -> Stock:
    return Stock(make_router("round-robin", [url]), "m", [url])


async def test_a_late_answer_does_not_slow_arrivals() -> None:
    all_came = asyncio.Event()
    count = 0

    async def after_all(body: Body) -> AsyncIterator[int]:
        nonlocal count
        count += 1
        if count == 3:
            all_came.set()
        await all_came.wait()  # for ever, if the first answer held the other requests back
        yield body["max_tokens"]

    items = [item(0.01 * number, f"s{number}") for number in range(3)]
    async with serving(after_all) as (url, _):
        sent = await play(Load(items, [EASY] * 3, 1), stock(url))
    assert all(one.outcome(promises=False).attained() for one in sent)


async def test_latency_counts_from_when_a_request_was_due() -> None:
    async with serving() as (url, _):
        (one,) = await play(Load([item()], [EASY], 1), stock(url))
    outcome = one.outcome(promises=False)
    assert one.sent_s is not None
    assert outcome.arrival_s <= one.sent_s <= outcome.token_times_s[0]
    assert outcome.ttft_s == outcome.token_times_s[0] - one.arrival_s


async def test_a_later_round_is_sent_after_the_one_before_it_has_ended() -> None:
    items = [item(session="a"), item(session="a", after_s=0.05)]
    async with serving() as (url, _):
        first, second = await play(Load(items, [EASY] * 2, 1), stock(url))
    assert first.ended_s is not None
    assert second.arrival_s >= first.ended_s + 0.049
    assert second.outcome(promises=False).attained()


async def test_what_has_not_ended_when_time_is_up_is_cancelled_and_counts_as_missed() -> None:
    async def never(_body: Body) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with serving(never) as (url, _):
        sent = await play(Load([item()], [EASY], 1, drain_s=0.2), stock(url))
    found = report([one.outcome(promises=False) for one in sent], 1.0)
    assert (found.attainment, found.unfinished) == (0.0, 1.0)


@pytest.mark.parametrize(("late_s", "runs"), [((0.5, 0.01, 0.5), 2), ((0.01,), 1), ((0.5, 0.5, 0.5, 0.5), 3)])
def test_a_run_in_which_the_machine_stood_still_is_repeated(late_s: tuple[float, ...], runs: int) -> None:
    made = iter(late_s)
    found = []

    def run() -> list[Sent]:
        found.append([Sent(item(), EASY, 1.0, sent_s=1.0 + next(made)), Sent(item(), EASY, 1.0)])
        return found[-1]

    aside = []
    assert undisturbed(run, lambda sent, late_s: aside.append((sent, late_s))) is found[-1]
    assert len(found) == runs
    assert [sent for sent, _ in aside] == found[:-1]
    assert [round(seconds, 3) for _, seconds in aside] == list(late_s[: runs - 1])


async def test_a_run_ends_once_too_many_are_lost_for_certain() -> None:
    items = [item(), item(3600.0, "t")]
    async with serving() as (url, _):
        first, second = await play(Load(items, [IMPOSSIBLE, EASY], 1, most_lost=0), stock(url))
    assert first.ended_s is not None
    assert second.sent_s is None
    assert not second.outcome(promises=False).attained()


async def test_a_refused_request_stays_in_the_denominator() -> None:
    async with serving() as (url, _):
        sent = await play(Load([item(), item(session="t", output=REFUSED)], [EASY] * 2, 1), Product(url))
    outcomes = [one.outcome(promises=True) for one in sent]
    assert [one.verdict for one in outcomes] == [Verdict.ADMITTED, Verdict.REJECTED]
    assert report(outcomes, 1.0).attainment == 0.5
    assert "queue_full" in sent[1].answer.error


async def test_a_promise_after_a_deferral_counts_as_promoted() -> None:
    async with serving() as (url, _):
        (one,) = await play(Load([item()], [EASY], 1), Product(url))
    outcome = one.outcome(promises=True)
    assert (outcome.promoted, outcome.deferred, outcome.predicted_ttft_s) == (True, True, 0.05)


def test_a_system_that_promises_but_has_said_nothing_has_admitted_nothing() -> None:
    assert Sent(item(), EASY, 0.0).outcome(promises=True).verdict is Verdict.DEFERRED
    assert Sent(item(), EASY, 0.0).outcome(promises=False).verdict is Verdict.ADMITTED


async def test_no_run_sends_prompts_that_a_server_may_have_in_its_prefix_cache() -> None:
    async with serving() as (url, bodies):
        for _ in range(3):
            await play(Load([item(), item()], [EASY] * 2, 1), stock(url))
    assert len({tuple(body["prompt"]) for body in bodies}) == 6


async def test_a_probe_reaches_every_server() -> None:
    async with serving() as (first, at_first), serving() as (second, at_second):
        await probe(Stock(make_router("round-robin", [first, second]), "m", [first, second]))
    assert (len(at_first), len(at_second)) == (1, 1)
