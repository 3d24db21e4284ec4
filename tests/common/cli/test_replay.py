"""``slos-serve replay`` finds no difference in a true log, and finds a changed decision."""

from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from admission.policies import make_policy
from admission.record import PlanLog
from common.cli import app
from tests.factories import make_held, make_state

RUNNER = CliRunner()
NOW_S = 100.0


def write_log(path: Path, change_reason: str | None = None) -> None:
    state = make_state([make_held(), make_held(objective=None)])
    plan = make_policy("edf").plan(state, NOW_S)
    if change_reason is not None:
        dispatch = {name: replace(decision, reason=change_reason) for name, decision in plan.dispatch.items()}
        plan = replace(plan, dispatch=dispatch)
    log = PlanLog(path)
    log.add("edf", state, NOW_S, plan)
    log.close()


def test_a_true_log_replays_without_a_difference(tmp_path: Path) -> None:
    write_log(tmp_path / "plans.log")
    result = RUNNER.invoke(app, ["replay", str(tmp_path / "plans.log")])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "1 plans, 0 decisions differ")


def test_a_decision_that_differs_is_told_and_fails(tmp_path: Path) -> None:
    write_log(tmp_path / "plans.log", change_reason="invented")
    result = RUNNER.invoke(app, ["replay", str(tmp_path / "plans.log")])
    assert result.exit_code == 1
    assert "logged invented, now feasible" in result.output


def test_a_file_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x04\x00\x00\x00abcd")
    assert RUNNER.invoke(app, ["replay", str(tmp_path / "x")]).exit_code != 0
