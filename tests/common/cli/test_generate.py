import json
from typing import Any

import pytest
from typer.testing import CliRunner

from common.cli import app
from common.cli.generate import events
from tests.common.cli.servers import Answer, answering

CLOSING = {
    "finish_reason": "length",
    "decision": {"verdict": "admitted", "reason": "fits", "prefill_worker": "p", "decode_worker": "d"},
    "slo": {
        "objective": {"ttft_ms": 100.0, "tpot_ms": 50.0},
        "achieved": {"ttft_ms": 12.5, "tpot_ms": 3.25},
        "attained": True,
    },
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def sse(*named: tuple[str, Any]) -> bytes:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in named).encode()


def test_events_come_out_of_lines_with_comments_ids_and_retries() -> None:
    lines = iter(
        ["retry: 1000", "", ": keep-alive", "", "id: 1", "event: token", 'data: {"a":', "data: 1}", "", "data: 2", ""]
    )
    assert list(events(lines)) == [("token", {"a": 1}), ("message", 2)]


def test_a_stream_prints_text_to_stdout_and_the_outcome_to_stderr() -> None:
    body = sse(("decision", {}), ("token", {"text": "Hel"}), ("token", {"text": "lo"}), ("done", CLOSING))
    with answering(Answer(200, body, "text/event-stream")) as server:
        result = CliRunner().invoke(app, ["generate", "hi", "--url", server.url, "--tier", "code"])
    assert result.exit_code == 0
    assert result.stdout == "Hello\n"
    assert "admitted (fits) on p -> d" in result.stderr
    assert "TTFT 12.5 ms of 100.0 ms, TPOT 3.2 ms of 50.0 ms, promise kept; 5 + 2 tokens, length" in result.stderr
    assert json.loads(server.bodies[0]) == {"prompt": "hi", "max_tokens": 128, "stream": True, "tier": "code"}


def test_without_streaming_the_whole_answer_is_printed() -> None:
    with answering(Answer(200, json.dumps(CLOSING | {"text": "Hello"}).encode(), "application/json")) as server:
        result = CliRunner().invoke(app, ["generate", "-", "--no-stream", "--url", server.url], input="from stdin")
    assert result.stdout == "Hello\n"
    assert json.loads(server.bodies[0])["prompt"] == "from stdin"


def test_an_explicit_slo_is_sent() -> None:
    with answering(Answer(200, json.dumps(CLOSING | {"text": ""}).encode(), "application/json")) as server:
        CliRunner().invoke(app, ["generate", "hi", "--ttft-ms", "200", "--tpot-ms", "20", "--url", server.url])
    assert json.loads(server.bodies[0])["slo"] == {"ttft_ms": 200.0, "tpot_ms": 20.0}


def test_half_an_slo_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["generate", "hi", "--ttft-ms", "200"])
    assert result.exit_code == 2
    assert "--tpot-ms" in result.stderr


def test_a_key_travels_as_a_bearer_token() -> None:
    with answering(Answer(200, json.dumps(CLOSING | {"text": ""}).encode(), "application/json")) as server:
        CliRunner().invoke(app, ["generate", "hi", "--url", server.url], env={"SLOS_API_KEY": "sesame"})
    assert server.headers[0]["authorization"] == "Bearer sesame"


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    problem = {"detail": "The SLO can't be met now.", "errors": [{"field": "tier", "message": "unknown"}]}
    answer = Answer(429, json.dumps(problem).encode(), "application/problem+json", {"Retry-After": "7"})
    with answering(answer) as server:
        result = CliRunner().invoke(app, ["generate", "hi", "--url", server.url])
    assert result.exit_code == 1
    assert "429: The SLO can't be met now. tier: unknown Try again in 7 s." in result.stderr


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ((), "the stream ended before the answer did"),
        ((("error", {"detail": "The worker failed."}),), "The worker failed."),
    ],
)
def test_a_broken_stream_is_an_error(last: tuple[tuple[str, Any], ...], message: str) -> None:
    body = sse(("token", {"text": "He"}), *last)
    with answering(Answer(200, body, "text/event-stream")) as server:
        result = CliRunner().invoke(app, ["generate", "hi", "--url", server.url])
    assert (result.exit_code, result.stdout) == (1, "He\n" if last else "He")
    assert message in result.stderr


def test_nobody_there_says_how_to_start_a_pipeline(free_url: str) -> None:
    result = CliRunner().invoke(app, ["generate", "hi", "--url", free_url])
    assert result.exit_code == 1
    assert "slos-serve up" in result.stderr


@pytest.fixture
def free_url() -> str:
    with answering(Answer(200, b"", "text/plain")) as server:
        return server.url
