from pathlib import Path

import pytest

from bench.workloads.item import Item
from bench.workloads.traces import read_trace
from common.errors import WorkloadError


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azure_csv_is_read_with_its_seven_digits(tmp_path: Path) -> None:
    rows = "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
    path = write(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    items = read_trace(path, "code")
    assert [(item.tier, item.prompt_tokens, item.output_tokens) for item in items] == [
        ("code", 4808, 10),
        ("code", 3180, 8),
    ]
    assert [item.arrival_s for item in items] == pytest.approx([0.0, 0.052], abs=1e-5)


def test_mooncake_jsonl_is_read_in_milliseconds(tmp_path: Path) -> None:
    path = write(tmp_path, '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n')
    assert read_trace(path) == [Item(0.0, "s0", "chat", 6955, 52)]


def test_our_own_format_is_read_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, '{"arrival_s": 2, "session": "x", "tier": "tool", "prompt_tokens": 3, "output_tokens": 4}\n')
    assert read_trace(path) == [Item(2, "x", "tool", 3, 4)]


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,many,10\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n",
        '{"timestamp": 1, "input_length": 5}\n',
        "1,2,3\n",
        "",
    ],
)
def test_a_malformed_trace_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(WorkloadError):
        read_trace(write(tmp_path, text))
