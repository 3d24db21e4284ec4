"""The simulated half of a comparison with real engines; the real half needs real engines."""

from pathlib import Path

import pytest

from bench.case import Case
from bench.real.calibration import Calibration, objectives_for
from bench.real.validate import measured, preset_of, simulate
from bench.workloads import WorkloadSpec
from common.errors import ProfileError
from common.latency_model import LatencyModel, Piece
from common.messages import Verdict

ENGINE = LatencyModel((Piece(5e-4, 0.0, 0.01),))
CASE = Case("ours", WorkloadSpec("mixed", 1.0, 10.0, 3, length_scale=0.25), "", 2)


@pytest.mark.parametrize(("zero_load_s", "promised"), [(1.0, True), (1e-4, False)])
def test_planned_for_are_the_slos_of_the_real_run_whatever_the_simulated_engine(
    zero_load_s: float, promised: bool
) -> None:
    items = CASE.items()
    calibration = Calibration(((1, zero_load_s), (4096, zero_load_s)), ((1, 0.02), (4096, 0.02)))
    outcomes = simulate(CASE, items, objectives_for(calibration, items), preset_of(ENGINE), 0.005, 0.0)
    assert len(outcomes) > 3
    assert {one.verdict is Verdict.ADMITTED for one in outcomes} == {promised}


def test_without_a_profile_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOS_PROFILE_DIR", str(tmp_path))
    with pytest.raises(ProfileError, match="there is no profile of"):
        measured("some/model")
