from pathlib import Path

import pytest

from bench.results import raw
from bench.results.__main__ import main
from bench.results.page import BEGIN, END, put_between
from tests.bench.results.support import study

RATES = {"ours": 4.0, "vllm": 2.0, "slos-serve": 3.0, "bound": 5.0}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for scenario in ("mixed", "coder"):
        raw.write(tmp_path / "results" / f"{scenario}.json", study(scenario, RATES))
    carried = {"requests_per_s": 321.5, "growth": [{"workers": 4, "cpu": 1.25, "by_seed": [0.5, 0.75]}]}
    about = study("mixed", RATES)
    of = {name: about[name] for name in ("format", "commit", "dirty", "date", "machine")}
    of["command"] = "python -m bench.control_plane --rate 5 --out plane.json"
    raw.write(tmp_path / "results" / "plane.json", of | carried)
    aside = [{"system": "ours", "rate": 3.0, "seed": 1, "sent_late_s": 0.25, "attained": 0.9375}]
    rated = {key: value for key, value in study("mixed", {"ours": 4.0}).items() if key != "capacity"}
    rated["scenarios"]["mixed"]["ours"]["points"] = [
        {"seed": 1, "requests": 30, "attainment": 1.0, "attainment_strict": 1.0},
        {"seed": 2, "requests": 10, "attainment": 0.5, "attainment_strict": 0.4},
    ]
    raw.write(tmp_path / "results" / "rated.json", rated | {"rate": 3.0, "set_aside": aside})
    (tmp_path / "README.md").write_text(f"# Name\n{BEGIN}\nold\n{END}\nrest\n")
    assert main(arguments(tmp_path)) == 0
    return tmp_path


def arguments(folder: Path) -> list[str]:
    paths = {"--folder": "results", "--page": "results.md", "--readme": "README.md"}
    return [part for name, path in paths.items() for part in (name, str(folder / path))]


def test_the_page_has_ratios_figures_and_where_they_come_from(made: Path) -> None:
    page = (made / "results.md").read_text()
    for said in ("2.00x", "1.33x", "80%", "`python -m bench.capacity --scenario SCENARIO`", "abc1234567"):
        assert said in page
    for name in ("attainment", "capacity", "latencies", "burst", "predicted"):
        assert f"](results/sim-p100-bursty-{name}.svg)" in page
        assert (made / "results" / f"sim-p100-bursty-{name}.svg").stat().st_size > 5000


def test_other_measurements_stand_on_the_page_too(made: Path) -> None:
    page = (made / "results.md").read_text()
    assert "| requests_per_s | 321.5 |" in page
    assert "| 4 | 1.25 | 0.5, 0.75 |" in page
    assert "### What the control plane carries" in page
    assert "`python -m bench.control_plane --rate 5` at abc1234567" in page


def test_a_study_at_one_rate_pools_requests_and_tells_which_runs_were_repeated(made: Path) -> None:
    page = (made / "results.md").read_text()
    assert "| mixed | slos-serve (ours) | 40 | 87.5% | 85.0% | 1.000, 0.500 |" in page
    assert "0.1 s late: slos-serve (ours), seed 1, attained 0.938 with 0.25 s." in page


def test_the_readme_has_the_table_between_its_markers_and_nothing_else_changed(made: Path) -> None:
    readme = (made / "README.md").read_text()
    assert readme.startswith(f"# Name\n{BEGIN}\n")
    assert readme.endswith(f"{END}\nrest\n")
    assert "old" not in readme
    assert "2.00x" in readme


def test_figures_of_results_that_are_gone_go_too(made: Path) -> None:
    left = made / "results" / "sim-gone-poisson-capacity.svg"
    own = made / "results" / "drawing.svg"
    left.write_text("<svg/>")
    own.write_text("<svg/>")
    assert main(arguments(made)) == 0
    assert not left.exists()
    assert own.exists()


def test_making_it_again_changes_nothing(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert main(arguments(made)) == 0
    assert before == {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}


def test_without_raw_results_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 2
    assert "no raw results" in capsys.readouterr().err
    assert not (tmp_path / "results.md").exists()


def test_a_readme_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="results:begin"):
        put_between("# Name\n", "table")
