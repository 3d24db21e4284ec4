import json
from pathlib import Path
from typing import Any

import pytest

from bench.workloads.file import parse_workload, read_workload, write_workload
from bench.workloads.item import Item
from common.errors import WorkloadError

LINE: dict[str, Any] = {
    "arrival_s": 0.173,
    "session": "s1",
    "tier": "chat",
    "prompt_tokens": 763,
    "output_tokens": 266,
    "thinking_tokens": 0,
    "after_s": None,
    "tenant": "t1",
}


def line(**changes: Any) -> str:
    return json.dumps(LINE | changes)


def test_the_documented_line_is_read() -> None:
    assert parse_workload([line()], "w") == [Item(0.173, "s1", "chat", 763, 266, 0, None, "t1")]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    items = [Item(0.0, "a", "tool", 10, 5), Item(0.5, "b", "reasoning", 7, 9, 4), Item(0.5, "a", "tool", 3, 2, 0, 1.5)]
    write_workload(tmp_path / "w.jsonl", items)
    assert read_workload(tmp_path / "w.jsonl") == items


def test_fields_that_may_be_left_out_have_defaults() -> None:
    body = {name: LINE[name] for name in ("arrival_s", "session", "tier", "prompt_tokens", "output_tokens")}
    assert parse_workload([json.dumps(body)], "w") == [Item(0.173, "s1", "chat", 763, 266)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (line(colour="red"), "colour"),
        (json.dumps({"arrival_s": 0.0}), "prompt_tokens"),
        ("{", "Expecting"),
        ("[1]", "object"),
        (line(prompt_tokens=0), "prompt_tokens"),
        (line(output_tokens=1.5), "output_tokens"),
        (line(prompt_tokens=True), "prompt_tokens"),
        (line(thinking_tokens=300), "thinking_tokens"),
        (line(arrival_s=-1), "arrival_s"),
        (line(arrival_s=float("nan")), "arrival_s"),
        (line(tier=""), "tier"),
        (line(after_s="soon"), "after_s"),
        (line(after_s=1.0), "first round"),
        ("", "no requests"),
    ],
)
def test_a_bad_line_is_an_error_that_names_the_field(text: str, why: str) -> None:
    with pytest.raises(WorkloadError, match=why):
        parse_workload([text], "w")


def test_an_error_names_the_line() -> None:
    with pytest.raises(WorkloadError, match="w:2: "):
        parse_workload([line(), line(colour="red")], "w")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="nothing"):
        read_workload(tmp_path / "nothing.jsonl")


def test_items_are_in_order_of_arrival_and_rounds_in_their_own() -> None:
    lines = [line(session="b", arrival_s=2), line(session="a", arrival_s=1), line(session="a", arrival_s=1, after_s=3)]
    read = parse_workload(lines, "w")
    assert [(item.session, item.after_s) for item in read] == [("a", None), ("a", 3), ("b", None)]
