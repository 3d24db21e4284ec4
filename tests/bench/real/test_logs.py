import json
from pathlib import Path

from bench.case import Case
from bench.real.job import Answer
from bench.real.load import Sent
from bench.real.logs import path_for, write
from bench.workloads import WorkloadSpec
from common.messages import Verdict
from tests.bench.real.server import EASY, item


def test_a_log_says_of_each_request_what_was_promised_and_what_came(tmp_path: Path) -> None:
    answer = Answer([10.1, 10.2, 10.3], [Verdict.ADMITTED], 0.05)
    late = Sent(item(), EASY, 10.0, Answer(error="AnswerError: 429"))
    write(tmp_path / "logs" / "a.jsonl", [Sent(item(), EASY, 10.0, answer, 10.4, 10.01), late], promises=True)
    first, second = (json.loads(line) for line in (tmp_path / "logs" / "a.jsonl").read_text().splitlines())
    assert (first["attained"], first["ttft_ms"], first["tokens_ms"]) == (True, 100.0, [100.0, 200.0, 300.0])
    assert (first["verdict"], first["predicted_ttft_ms"], first["late_ms"]) == ("admitted", 50.0, 10.0)
    assert (second["attained"], second["ttft_ms"], second["error"]) == (False, None, "AnswerError: 429")


def test_each_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    case = Case("+ hold", WorkloadSpec("mixed", 2.0, 1.0, 3), "", 2)
    assert path_for(tmp_path, case).name == "mixed-poisson-hold-2.000-seed3.jsonl"
    assert path_for(tmp_path, case) != path_for(tmp_path, case.at(2.1))
