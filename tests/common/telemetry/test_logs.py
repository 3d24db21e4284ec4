import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
import uvicorn

from common.messages import Work
from common.settings import Settings
from common.telemetry import tracing
from common.telemetry.logs import get_logger, setup_logging
from tests.common.telemetry.scenario import make_decision, make_request
from tests.otlp_receiver import OtlpReceiver

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("httpx", "asyncio", "uvicorn.access")}
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """The JSON lines logged since the last call; logging is set up on the way."""
    setup_logging(Settings(log_format="json"), "api")
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_entry_is_json_with_time_level_logger_and_service(lines: Lines) -> None:
    get_logger("api.generate").info("accepted", tier="chat", tokens_in=12)
    (entry,) = lines()
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "accepted",
        "level": "info",
        "logger": "api.generate",
        "service": "api",
        "tier": "chat",
        "tokens_in": 12,
    }


def test_libraries_log_through_the_same_handler(lines: Lines) -> None:
    logging.getLogger("redis").warning("lost %s", "redis://:hunter2@db:6379")
    (entry,) = lines()
    assert (entry["logger"], entry["event"]) == ("redis", "lost redis://:[redacted]@db:6379")


def test_uvicorn_and_vllm_lose_handlers_that_they_brought(capsys: pytest.CaptureFixture[str]) -> None:
    uvicorn.Config(app=None, log_config=uvicorn.config.LOGGING_CONFIG)  # type: ignore[arg-type]
    for name in ("uvicorn.error", "vllm"):
        logging.getLogger(name).addHandler(logging.StreamHandler())
        logging.getLogger(name).propagate = False
    setup_logging(Settings(log_format="json"), "api")
    logging.getLogger("uvicorn.error").error("once")
    logging.getLogger("vllm").error("once too")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["once", "once too"]


def test_setting_up_twice_logs_once(lines: Lines) -> None:
    setup_logging(Settings(log_format="json"), "admission")
    get_logger("x").info("once")
    (entry,) = lines()
    assert entry["service"] == "admission"


def test_the_level_is_respected(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(Settings(log_format="json", log_level="warning"), "api")
    get_logger("x").info("unheard")
    logging.getLogger("library").info("unheard")
    get_logger("x").warning("heard")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["heard"]


def test_the_console_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(Settings(log_format="console"), "api")
    try:
        password = "hunter2"
        raise ValueError(f"redis://:{password}@db is gone")
    except ValueError:
        get_logger("x").exception("failed", prompt="how do I")
    text = capsys.readouterr().err
    assert "ValueError" in text
    assert "Traceback" in text
    assert "hunter2" not in text
    assert "how do I" not in text


def test_messages_can_be_logged_whole_without_their_prompt(lines: Lines) -> None:
    work = Work(make_request(), make_decision(), attempt=1, generated=(31340, 31341))
    get_logger("x").info("took", work=work, several=[work])
    (entry,) = lines()
    assert entry["work"]["request"]["id"] == "r1"
    assert entry["work"]["request"]["prompt"] == "[3 left out]"
    assert "3133" not in json.dumps(entry)
    assert "3134" not in json.dumps(entry)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", "hunter2"),
        ("prompt_token_ids", [1, 2, 3]),
        ("tokens", (7, 8)),
        ("messages", [{"role": "user", "content": "hunter2"}]),
        ("authorization", "Bearer hunter2"),
        ("Authorization", "hunter2"),
        ("api_key", "hunter2"),
        ("x-api-key", "hunter2"),
        ("api_keys", ["hunter2"]),
        ("hf_token", "hunter2"),
        ("redis_password", "hunter2"),
        ("headers", {"authorization": "Bearer hunter2", "cookie": "hunter2"}),
        ("url", "redis://:hunter2@db:6379/0"),
        ("url", "rediss://user:hunter2@db:6379/0"),
        ("error", "Invalid header: Bearer hunter2"),
        ("error", "api_key=hunter2 was refused"),
        ("error", "1 validation error [type=int_type, input_value='hunter2', input_type=str]"),
        ("private_key", "hunter2"),
        ("error", "Request(prompt='hunter2', n=1)"),
        ("error", '{"content": "say \\"hunter2\\" now"}'),
        ("ids", list(range(31337, 31357))),
        ("deep", {"a": {"b": {"prompt": "hunter2"}}}),
        ("raw", b"hunter2"),
        ("settings", Settings(redis_url="redis://:hunter2@db/0")),
    ],
)
def test_secrets_and_content_never_reach_the_log(lines: Lines, name: str, value: object) -> None:
    get_logger("x").info("entry", **{name: value})
    (entry,) = lines()
    text = json.dumps(entry)
    assert "hunter2" not in text
    assert "31340" not in text
    assert "[1, 2, 3]" not in text
    assert "[7, 8]" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", 12),
        ("max_tokens", 64),
        ("prompt_tokens", 12),
        ("first_token_s", 0.25),
        ("key_count", 3),
        ("key", "{slos}:requests:chat"),
        ("workers", ["p1", "d1"]),
        ("url", "http://127.0.0.1:8000/readyz"),
        ("error", "token budget of 5 exceeded at 10:30"),
        ("ready", True),
        ("nothing", None),
    ],
)
def test_sizes_and_plain_facts_pass(lines: Lines, name: str, value: object) -> None:
    get_logger("x").info("entry", **{name: value})
    assert lines()[0][name] == value


def test_other_handlers_of_the_root_logger_see_no_more(lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    get_logger("x").info("entry", prompt="hunter2")
    assert "entry" in caplog.text
    assert "hunter2" not in caplog.text


def test_what_libraries_attach_is_redacted_too(lines: Lines) -> None:
    logging.getLogger("library").warning("entry", extra={"api_key": "hunter2", "size": 3})
    (entry,) = lines()
    assert (entry["api_key"], entry["size"]) == ("[redacted]", 3)


def test_runs_of_token_ids_in_text_are_left_out(lines: Lines) -> None:
    get_logger("x").info(f"generated {list(range(31337, 31350))} in 3 steps")
    assert lines()[0]["event"] == "generated [redacted] in 3 steps"


@pytest.mark.parametrize("unit", ["a-", "a.", "[1,", "a://", "input='", "api_key", "( "])
def test_a_huge_value_is_cut_whatever_it_is_made_of(lines: Lines, unit: str) -> None:
    get_logger("x").info("entry", error=unit * 100_000)
    assert len(lines()[0]["error"]) < 20_000


def test_an_exception_in_a_library_is_one_entry_without_secrets(lines: Lines) -> None:
    try:
        raise RuntimeError("can't reach redis://:hunter2@db")
    except RuntimeError:
        logging.getLogger("library").exception("broken")
    (entry,) = lines()
    assert "RuntimeError" in entry["exception"]
    assert "hunter2" not in entry["exception"]


def test_a_collector_that_is_away_is_told_once_in_a_while_not_with_every_batch(lines: Lines) -> None:
    for batch in range(50):
        logging.getLogger("opentelemetry.exporter").warning("Transient error, retrying batch %s", batch)
        logging.getLogger("other").warning("batch %s", batch)
    entries = lines()
    assert [entry["event"] for entry in entries if entry["logger"] == "opentelemetry.exporter"] == [
        "Transient error, retrying batch 0"
    ]
    assert len(entries) == 51


def test_warnings_are_logged(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old thing", stacklevel=1)
        logging.captureWarnings(False)
    (entry,) = lines()
    assert entry["logger"] == "py.warnings"
    assert "old thing" in entry["event"]


def test_bound_context_is_in_every_entry(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logging.getLogger("library").warning("inside")
    assert lines()[0]["request_id"] == "r1"


async def test_an_entry_inside_of_a_span_carries_its_trace(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_endpoint)
        tracing.setup_tracing(Settings(), "api", "api-1")
        with tracing.span("work"):
            get_logger("x").info("inside")
        tracing.shutdown_tracing()
        (span,) = receiver.named("work")
    entry = lines()[0]
    assert (entry["trace_id"], entry["span_id"]) == (span.trace_id, span.span_id)
