import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from bench.ablation import main as ablation
from bench.ablation import step
from bench.capacity import main
from bench.case import Case
from bench.metrics import Report
from bench.results import raw
from bench.results.__main__ import main as results
from bench.study import Found, Measured, Study
from bench.workload import main as workload
from bench.workloads.generate import WorkloadSpec

SHORT = "--workers 1 --seconds 12 --tune-seconds 6 --precision 0.3".split()
Capsys = pytest.CaptureFixture[str]


def run(capsys: Capsys, *options: str, command: Callable[[list[str]], int] = main) -> dict[str, Any]:
    assert command(list(options)) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_capacity_of_each_system_with_its_ratio_to_ours(capsys: Capsys) -> None:
    found = run(capsys, *SHORT, "--systems", "ours,vllm,bound", "--seeds", "2", "--scenario", "chatbot", "--json")
    assert set(found["capacity"]) == {"ours", "vllm", "bound"}
    ours = found["capacity"]["ours"]
    assert found["ratio"] == {name: ours / found["capacity"][name] for name in ("vllm", "bound")}
    assert found["ratio"]["bound"] <= 1.0
    for system, (low, high) in found["ci"].items():
        assert low <= found["capacity"][system] <= high
    detail = found["scenarios"]["chatbot"]["vllm"]
    assert len(detail["by_seed"]) == 2
    assert detail["tuning"].startswith("budget=")
    assert detail["report"]["attainment"] >= 0.9
    assert {"attainment_strict", "deferred", "goodput_requests_per_s", "jain", "ttft_s"} <= set(detail["report"])


def test_one_rate_is_evaluated_on_a_workload_file(tmp_path: Path, capsys: Capsys) -> None:
    path = str(tmp_path / "w.jsonl")
    assert workload(["--scenario", "coder", "--rate", "3", "--seconds", "15", "--out", path]) == 0
    options = ("--workload", path, "--rate", "1", "--systems", "vllm", "--seeds", "1", "--json", *SHORT)
    found = run(capsys, *options)
    assert found["rate"] == 1.0
    assert "capacity" not in found
    detail = found["scenarios"]["workload"]["vllm"]
    assert detail["capacity"] == 1.0
    assert detail["report"]["requests"] == len(Path(path).read_text().splitlines())


class Noting:
    """A mode that says which runs it was asked for."""

    parallel = False

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []
        self.nothing = cast(Report, None)

    def run(self, case: Case) -> Report:
        self.runs.append((case.system, case.spec.seed))
        return self.nothing

    def tunings(self, case: Case) -> list[Any]:
        return [None]

    def start_rate(self, case: Case) -> float:
        return 1.0

    def described(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def test_systems_take_turns_seed_by_seed(capsys: Capsys) -> None:
    mode, spec = Noting(), WorkloadSpec("chatbot", 1.0, 10.0, 1)
    Study(mode).run([Case(name, spec, "", 2) for name in ("vllm", "ours")], (1, 2, 3), rate=1.0)
    assert mode.runs == [(name, seed) for seed in (1, 2, 3) for name in ("vllm", "ours")]
    told = capsys.readouterr().err  # no terminal here, so a line for each piece of work
    assert [f"{n}/8: chatbot {name} after" in told for n, name in enumerate(["vllm", "ours"] * 4, 1)] == [True] * 8


class Failing(Noting):
    """Its first run fails."""

    def run(self, case: Case) -> Report:
        super().run(case)
        raise RuntimeError("did not start")


def test_a_system_that_does_not_start_ends_the_study_before_others_run_for_nothing() -> None:
    mode, spec = Failing(), WorkloadSpec("chatbot", 1.0, 10.0, 1)
    with pytest.raises(RuntimeError, match="did not start"):
        Study(mode).run([Case(name, spec, "", 2) for name in ("vllm", "ours")], (1, 2), rate=1.0)
    assert mode.runs == [("vllm", 1)]


def test_a_study_at_one_rate_is_on_the_results_page(tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "results" / "at-a-rate.json"
    options = ("--scenario", "chatbot", "--rate", "2", "--systems", "vllm,ours", "--seeds", "2", "--out", str(out))
    run(capsys, *options, "--json", *SHORT)
    points = json.loads(out.read_text())["scenarios"]["chatbot"]["vllm"]["points"]
    requests = sum(one["requests"] for one in points)
    attained = sum(one["requests"] * one["attainment"] for one in points) / requests
    assert (
        results(["--folder", str(out.parent), "--page", str(tmp_path / "p.md"), "--readme", str(tmp_path / "r")]) == 0
    )
    page = (tmp_path / "p.md").read_text()
    assert "poisson arrivals, 2 requests/s in all, 12 s a seed" in page
    seeds = ", ".join(f"{one['attainment']:.3f}" for one in points)
    assert f"| chatbot | vLLM | {requests} | {attained:.1%} |" in page
    assert seeds in page


def test_the_result_is_the_same_in_several_processes(capsys: Capsys) -> None:
    options = (*SHORT, "--seconds", "4", "--systems", "bound", "--seeds", "2", "--scenario", "coder", "--json")
    alone, together = (run(capsys, *options, "--jobs", jobs) for jobs in ("1", "2"))
    assert alone["capacity"] == together["capacity"]


def test_the_geometric_mean_is_over_all_scenarios(tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "result.json"
    every = ("--scenario", "all", "--systems", "bound", "--seeds", "1", "--out", str(out))
    found = run(capsys, *every, *SHORT, "--seconds", "2")
    assert set(found["scenarios"]) == {"chatbot", "coder", "summarizer", "mixed", "tool", "reasoning"}
    product = 1.0
    for systems in found["scenarios"].values():
        product *= systems["bound"]["capacity"]
    assert found["capacity"]["bound"] == pytest.approx(product ** (1 / 6))
    written = json.loads(out.read_text())
    assert written["capacity"] == found["capacity"]
    assert set(written["scenarios"]) == set(found["scenarios"])


@pytest.mark.parametrize("options", [["--systems", "magic"], ["--seeds", "0"], ["--rate", "-1"], ["--systems", ""]])
def test_what_makes_no_sense_is_refused(options: list[str], capsys: Capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_workload_that_can_not_be_read_is_one_line_of_error(tmp_path: Path, capsys: Capsys) -> None:
    assert main(["--workload", str(tmp_path / "none"), "--json"]) == 2
    assert "none" in capsys.readouterr().err.splitlines()[-1]


def test_an_ablation_says_what_each_ingredient_is_worth(capsys: Capsys, tmp_path: Path) -> None:
    options = (
        "--workers",
        "1",
        "--seconds",
        "10",
        "--seeds",
        "1",
        "--variants",
        "speculation,slack batching",
        "--json",
    )
    found = run(capsys, *options, "--scenarios", "coder", "--out", str(tmp_path / "worth.json"), command=ablation)
    whole = found["capacity"]["coder"]["whole"]
    assert found["worth"] == {
        name: {"coder": pytest.approx(1 - found["capacity"]["coder"][name] / whole), "all": pytest.approx(lost["all"])}
        for name, lost in found["worth"].items()
    }
    assert set(found["worth"]) == {"speculation", "slack batching"}
    kept = raw.read(tmp_path / "worth.json")
    assert kept["worth"] == found["worth"]
    assert kept["command"].startswith("python -m bench.ablation --workers 1")


def test_a_real_step_is_told_at_its_rate_with_its_seeds() -> None:
    case = Case("+ hold", WorkloadSpec("mixed", 4.0, 1.0, 1), "", 2)
    first = Report(
        10, 0.9, 0.8, 0.9, 0.9, 0.1, 0.0, 0.0, 0.0, (0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 1.0, 1.0, 1.0, 1.0, True, 0.0
    )  # fmt: skip
    reports = {1: first, 2: replace(first, requests=30, attainment=0.7, attainment_strict=0.6)}
    found = Found(case, {seed: Measured(4.0, {4.0: one}) for seed, one in reports.items()})
    assert step(found, 4.0) == {
        "requests": 40,
        "attained": pytest.approx(0.75),
        "attained_strict": pytest.approx(0.65),
        "met": pytest.approx(0.9),
        "by_seed": [0.9, 0.7],
    }
