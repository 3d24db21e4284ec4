import json
from collections.abc import AsyncIterator

import pytest

from common.offline.lines import BadLine, Line, parse_line, survey

URL = "/v1/completions"


def make_line(**changes: object) -> bytes:
    line = {"custom_id": "a", "method": "POST", "url": URL, "body": {"prompt": "x"}} | changes
    return json.dumps({key: value for key, value in line.items() if value is not ...}).encode()


async def numbered(*lines: bytes) -> AsyncIterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        yield number, line


def test_a_good_line_gives_its_id_and_its_body_as_json() -> None:
    assert parse_line(make_line(), URL, 1000) == Line("a", b'{"prompt":"x"}')


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[]", "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (b'{"custom_id": "a", "n": NaN}', "invalid_json_line"),
        (b"[" * 900, "invalid_json_line"),
        (make_line(custom_id="x" * 513), "invalid_custom_id"),
        (make_line(custom_id=7), "invalid_custom_id"),
        (make_line(custom_id=...), "invalid_custom_id"),
        (make_line(method="GET"), "invalid_method"),
        (make_line(url="/v1/chat/completions"), "invalid_url"),
        (make_line(body="x"), "invalid_body"),
        (make_line(body={"stream": True}), "stream_not_supported"),
        (make_line(other=1), "unknown_field"),
        (make_line(body={"prompt": "x" * 1000}), "line_too_long"),
    ],
)
def test_a_bad_line_says_what_is_wrong_without_quoting_it(raw: bytes, code: str) -> None:
    bad = parse_line(raw, URL, 1000)
    assert isinstance(bad, BadLine)
    assert bad.code == code
    assert "xxx" not in bad.message


async def test_a_custom_id_that_comes_again_is_bad_the_second_time() -> None:
    found = await survey(numbered(make_line(), b"{", make_line()), URL, 10, 1000)
    assert (found.total, {n: bad.code for n, bad in found.bad.items()}, found.fault) == (
        3,
        {2: "invalid_json_line", 3: "duplicate_custom_id"},
        None,
    )


async def test_too_many_lines_and_none_at_all_fail_the_whole_batch() -> None:
    many = await survey(numbered(*[make_line(custom_id=str(n)) for n in range(4)]), URL, 3, 1000)
    none = await survey(numbered(), URL, 3, 1000)
    assert many.fault is not None
    assert (many.fault.code, many.fault.line) == ("too_many_lines", 4)
    assert none.fault is not None
    assert none.fault.code == "empty_file"
