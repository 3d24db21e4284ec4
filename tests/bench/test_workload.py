import json
from pathlib import Path

import pytest

from bench.workload import main
from bench.workloads.file import read_workload


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_scenario_is_written_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "w.jsonl")
    options = "--scenario mixed --rate 4 --arrivals bursty --seconds 300 --seed 1".split()
    assert main([*options, "--out", path]) == 0
    written = last_line(capsys)
    assert main(["--describe", path]) == 0
    described = last_line(capsys)
    assert described == {name: value for name, value in written.items() if name != "out"}
    assert described["requests"] == len(read_workload(Path(path)))
    assert set(described["tiers"]) == {"chat", "code", "summarize"}  # type: ignore[call-overload]


def test_a_trace_is_converted_at_another_rate_and_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, out = tmp_path / "t.jsonl", tmp_path / "w.jsonl"
    lines = [{"timestamp": 1000 * i, "input_length": 100, "output_length": 10} for i in range(11)]
    trace.write_text("\n".join(map(json.dumps, lines)))
    assert main(["--convert", str(trace), "--out", str(out), "--rate", "2.2", "--length-scale", "0.5"]) == 0
    last_line(capsys)
    items = read_workload(out)
    assert items[-1].arrival_s == pytest.approx(5.0)
    assert {(item.prompt_tokens, item.output_tokens) for item in items} == {(50, 5)}


def test_a_file_that_is_no_workload_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").write_text('{"arrival_s": 0, "colour": "red"}')
    assert main(["--describe", str(tmp_path / "bad")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "colour" in captured.err
    assert captured.err.count("\n") == 1
