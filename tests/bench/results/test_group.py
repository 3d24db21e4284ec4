import pytest

from bench.results.group import DEPLOYED, Group, groups
from bench.results.page import page
from tests.bench.results.support import study


def one(*raws: tuple[str, dict[str, float]]) -> Group:
    (group,) = groups({scenario: study(scenario, rates) for scenario, rates in raws})
    return group


def test_a_ratio_is_the_geometric_mean_against_the_best_in_each_scenario() -> None:
    group = one(
        ("mixed", {"ours": 4.0, "vllm": 2.0, "disagg": 1.0}), ("coder", {"ours": 8.0, "vllm": 0.5, "disagg": 1.0})
    )
    assert group.ratio(["vllm"]) == pytest.approx((2.0 * 16.0) ** 0.5)
    assert group.ratio(DEPLOYED) == pytest.approx((2.0 * 8.0) ** 0.5)
    assert group.mean_capacity("ours") == pytest.approx(32.0**0.5)


def test_a_system_that_was_not_run_has_no_ratio() -> None:
    group = one(("mixed", {"ours": 4.0, "vllm": 2.0}), ("coder", {"ours": 8.0}))
    assert group.ratio(["vllm"]) is None
    assert group.ratio(["bound"]) is None


def test_studies_are_apart_by_engine_and_arrivals() -> None:
    files = {"a": study("mixed", {"ours": 1.0}), "b": study("mixed", {"ours": 1.0})}
    files["b"]["settings"] |= {"arrivals": "trace", "trace": "code.csv"}
    files["c"] = study("mixed", {"ours": 1.0})
    files["c"]["settings"] |= {"mode": "real", "preset": "", "workload": "some/day.jsonl"}
    assert [group.slug for group in groups(files)] == ["sim-p100-bursty", "sim-p100-trace-of-code", "real-day"]


def test_the_newest_study_of_a_scenario_counts() -> None:
    old, new = study("mixed", {"ours": 1.0}), study("mixed", {"ours": 2.0}, date="2026-11-22T00:00:00+00:00")
    (group,) = groups({"new": new, "old": old})
    assert group.mean_capacity("ours") == pytest.approx(2.0)
    assert list(group.files) == ["new"]


def test_studies_of_other_seeds_are_put_together_and_those_of_other_settings_are_not() -> None:
    first, second = study("mixed", {"ours": 1.0}), study("mixed", {"ours": 8.0}, date="2026-11-22T00:00:00+00:00")
    first["settings"] |= {"first_seed": 1, "seeds": 2}
    second["settings"] |= {"first_seed": 3, "seeds": 1}
    first["scenarios"]["mixed"]["ours"] |= {"by_seed": [1.0, 1.0], "attainment": 0.9}
    second["scenarios"]["mixed"]["ours"] |= {"by_seed": [8.0], "attainment": 0.96}
    (group,) = groups({"first": first, "second": second})
    ours = group.scenarios["mixed"]["ours"]
    assert (ours["by_seed"], ours["capacity"]) == ([1.0, 1.0, 8.0], pytest.approx(2.0))
    assert ours["attainment"] == pytest.approx(0.92)
    assert list(group.files) == ["first", "second"]
    assert "3 seeds" in group.provenance()
    first["settings"]["seconds"] = 7.0
    (group,) = groups({"first": first, "second": second})
    assert group.scenarios["mixed"]["ours"]["by_seed"] == [8.0]


def test_commands_of_scenarios_are_said_once_and_uncommitted_code_is_marked() -> None:
    files = {name: study(name, {"ours": 1.0}, dirty=name == "coder") for name in ("mixed", "coder")}
    (group,) = groups(files)
    assert group.commands() == ["python -m bench.capacity --scenario SCENARIO"]
    assert group.commits() == ["abc1234567", "abc1234567+"]
    for said in ("coder, mixed", "bursty", "p100", "SCENARIO", "abc1234567+"):
        assert said in group.provenance()


@pytest.mark.parametrize(("trace", "cited"), [("code.csv", True), ("ours.jsonl", False)])
def test_azures_traces_are_cited_and_no_others(trace: str, cited: bool) -> None:
    files = {"a": study("mixed", {"ours": 1.0})}
    files["a"]["settings"] |= {"arrivals": "trace", "trace": trace}
    assert ("Splitwise" in page(groups(files), [], {}, {})) == cited
