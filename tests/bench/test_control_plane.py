import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from bench.control_plane.__main__ import main
from bench.control_plane.load import Answer, Client, Pool, Shape
from bench.control_plane.probe import Probe, highest, judge

DONE = b'event: done\ndata: {"usage":{"prompt_tokens":4,"completion_tokens":3,"total_tokens":7}}\n\n'
EVENTS = (
    b'event: decision\ndata: {"decision":{"verdict":"admitted","decided_s":2000000000.5}}\n\n',
    b'event: token\ndata: {"position":0,"token_ids":[7],"text":"a","time_s":1000.25}\n\n',
    DONE,
)


def chunked(*parts: bytes) -> bytes:
    body = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def answer(delay_s: float | None = 0.001, error: str = "", due_s: float = 10.0, replica: int = 0) -> Answer:
    decided_s = None if delay_s is None else due_s + delay_s
    return Answer(due_s, replica, due_s, decided_s, due_s, due_s + 0.01, due_s + 1, 40, error)


def probe(rate: float, holds: bool) -> Probe:
    answers = [answer(0.001 if holds else 1.0)]
    return judge(answers, rate, 10.0, 11.0, {"redis": 0.1}, 1)


@asynccontextmanager
async def serving(reply: bytes, piece: int) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            assert len(json.loads(await reader.readexactly(length))["prompt_token_ids"]) == 4
            for at in range(0, len(reply), piece):
                writer.write(reply[at : at + piece])
                await writer.drain()

    def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))

        def ended(done: asyncio.Task[None]) -> None:
            writer.close()
            if not done.cancelled():
                done.exception()  # the client has gone

        task.add_done_callback(ended)

    server = await asyncio.start_server(quietly, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


@pytest.mark.parametrize("piece", [1, 7, 10_000])
async def test_the_client_reads_answers_in_whatever_pieces_they_come(piece: int) -> None:
    async with serving(chunked(*EVENTS), piece) as url:
        pool = Pool(url)
        answers = await Client([pool], Shape(4, 3)).run(200.0, 0.1, drain_s=10.0)
        pool.close()
    assert answers
    assert {(one.error, one.tokens, one.decided_s, one.made_s) for one in answers} == {("", 3, 2000000000.5, 1000.25)}
    assert all(one.ended_s is not None and one.first_s is not None for one in answers)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nlate", "429"),
        (chunked(EVENTS[0], b"event: error\ndata: {}\n\n"), "without done"),
    ],
)
async def test_a_refusal_or_a_broken_answer_is_an_error(reply: bytes, said: str) -> None:
    async with serving(reply, 5) as url:
        pool = Pool(url)
        answers = await Client([pool], Shape(4, 3)).run(100.0, 0.05, drain_s=10.0)
        pool.close()
    assert answers
    assert all(said in one.error for one in answers)


@pytest.mark.parametrize(
    ("spoilt", "holds"),
    [
        (lambda: answer(), True),
        (lambda: answer(delay_s=0.2), False),
        (lambda: answer(delay_s=None), False),
        (lambda: answer(error="connection lost"), False),
    ],
)
def test_a_rate_holds_if_all_are_decided_and_answered_in_time(spoilt: Callable[[], Answer], holds: bool) -> None:
    found = judge([answer(), answer(), spoilt()], 3.0, 10.0, 11.0, {"redis": 0.6}, 1)
    assert found.holds is holds
    if holds:
        assert (found.requests_per_s, found.tokens_per_s) == (3.0, 120.0)
        assert found.cpu_ms_per_request() == {"redis": 200.0}


def test_each_replica_must_hold_by_itself() -> None:
    answers = [*(answer(replica=0) for _ in range(1000)), answer(delay_s=0.5, replica=1)]
    assert judge(answers, 1.0, 10.0, 11.0, {}, 2).holds is False


def test_only_what_was_due_in_the_window_counts() -> None:
    found = judge(
        [answer(due_s=9.0, delay_s=1.0), answer(due_s=10.5), answer(due_s=12.0, delay_s=1.0)], 1, 10, 11, {}, 1
    )
    assert found.requests_per_s == 1.0
    assert found.holds


def test_a_client_that_is_late_does_not_hold() -> None:
    late = answer()
    late.sent_s += 0.02
    assert judge([late], 1.0, 10.0, 11.0, {}, 1).holds is False


@pytest.mark.parametrize("limit", [12.0, 90.0, 700.0])
async def test_the_search_ends_just_below_the_limit(limit: float) -> None:
    async def measure(rate: float) -> Probe:
        return probe(rate, rate <= limit)

    best, probes = await highest(measure, 100.0)
    assert best.holds
    assert limit / 1.1 < best.rate <= limit
    assert len(probes) < 20


async def test_a_search_in_which_nothing_holds_says_so() -> None:
    async def measure(rate: float) -> Probe:
        return probe(rate, holds=False)

    best, probes = await highest(measure, 100.0)
    assert not best.holds
    assert best.rate == min(one.rate for one in probes) < 15.0


async def test_a_spoilt_probe_is_repeated() -> None:
    spoilt = {100.0}

    async def measure(rate: float) -> Probe:
        found = probe(rate, holds=rate <= 300.0 and rate not in spoilt)
        spoilt.discard(rate)
        return found

    best, _ = await highest(measure, 100.0)
    assert best.rate > 270.0


@pytest.mark.timeout(180)
def test_real_processes_carry_a_light_load(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--workers 2 --rate 10 --seconds 2 --warm-up-s 1 --output-tokens 5 --step-ms 20 --json"
    assert main(options.split()) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["probes"][0]["ended"] == 1.0
    assert found["tokens_per_s"] == pytest.approx(5 * found["requests_per_s"], rel=0.01)
    assert set(found["cpu_ms_per_request"]) == {"admission", "api-1", "redis", "workers", "client"}
    assert [row["workers"] for row in found["growth"]] == [2]


@pytest.mark.parametrize("options", [["--workers", "many"], ["--workers", "0"], ["--rate", "-1"]])
def test_what_makes_no_sense_is_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
