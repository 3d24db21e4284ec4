import json
from pathlib import Path

import pytest

from bench.capacity import main as capacity
from bench.results import raw

QUICK = (
    "--workers 1 --seconds 8 --tune-seconds 4 --seeds 2 --scenario coder --systems ours,vllm,bound --json --curve 3"
).split()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("results") / "coder.json"
    assert capacity([*QUICK, "--out", str(path)]) == 0
    return path


def test_a_raw_file_says_how_it_came_about(written: Path) -> None:
    found = raw.read(written)
    assert found["command"] == f"python -m bench.capacity {' '.join(QUICK)} --out {written.name}"
    assert found["commit"] == raw.commit()
    assert {"cpu", "cores", "system", "python"} == set(found["machine"])
    assert found["settings"]["mode"] == "sim"


def test_every_rate_that_was_run_is_kept_by_seed(written: Path) -> None:
    for system, found in raw.read(written)["scenarios"]["coder"].items():
        assert len(found["points"]) == found["runs"]
        by_seed = dict(zip((1, 2), found["by_seed"], strict=True))
        for seed, rate in by_seed.items():
            held = [one for one in found["points"] if one["seed"] == seed and one["rate"] == round(rate, 5)]
            assert held[0]["attainment"] >= 0.9, system


def test_systems_are_compared_at_the_same_rates(written: Path) -> None:
    systems = raw.read(written)["scenarios"]["coder"]
    ours, stock = ([one["rate"] for one in systems[name]["curve"]] for name in ("ours", "vllm"))
    assert ours == stock[: len(ours)] or stock == ours[: len(stock)]
    assert "curve" not in systems["bound"]


def test_one_run_of_each_main_system_is_seen_from_near(written: Path) -> None:
    systems = raw.read(written)["scenarios"]["coder"]
    assert "run" not in systems["bound"]
    runs = [systems[name]["run"] for name in ("ours", "vllm")]
    assert len({(run["rate"], run["seed"], run["requests"]) for run in runs}) == 1
    for run in runs:
        assert {len(column) for column in run["stretch"].values()} == {run["requests"]}
        assert run["tiers"]["code"]["requests"] == run["requests"]
    predicted = runs[0]["predicted"]
    assert len(predicted["ttft_ms"]) == len(predicted["achieved_ttft_ms"]) > 0


def test_the_command_is_told_as_a_shell_takes_it() -> None:
    told = raw.provenance("bench.ablation", ["--variants", "+ hold,stock", "--out", "/tmp/a.json"])["command"]
    assert told == "python -m bench.ablation --variants '+ hold,stock' --out a.json"


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match=r"old\.json"):
        raw.read(path)
    assert not raw.up_to_date(path)


def test_a_result_of_unknown_code_is_not_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    raw.write(path, {"format": raw.FORMAT, "commit": "0000000000", "dirty": False})
    assert not raw.up_to_date(path)
    raw.write(path, {"format": raw.FORMAT, "commit": raw.commit(), "dirty": True})
    assert not raw.up_to_date(path)


def test_a_value_that_json_does_not_know_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(ValueError, match="JSON"):
        raw.write(path, {"rate": float("inf")})
    assert not path.exists()


def test_what_a_run_measured_of_the_machine_is_added_to_what_is_told_of_it() -> None:
    about = raw.provenance("bench.capacity", [])
    both = raw.joined(about, {"capacity": {}, "machine": {"step_ms": 9.7}})["machine"]
    assert (both["cores"], both["step_ms"]) == (about["machine"]["cores"], 9.7)
    assert raw.joined(about, {"capacity": {}})["machine"] == about["machine"]
