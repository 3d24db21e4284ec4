import json
from pathlib import Path

import pytest

from bench.results import raw
from bench.sweep import main

QUICK = (
    "--parts opt-poisson --scenarios coder --systems vllm,bound --seconds 5 --tune-seconds 2 --seeds 1 --workers 1 "
    "--curve 0 --jobs 1"
).split()


def run(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, int]:
    assert main([*QUICK, *options]) == 0
    found: dict[str, int] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_study_is_run_once_for_the_same_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "MEASURED", ("LICENSE",))
    folder = ("--folder", str(tmp_path))
    assert run(capsys, *folder)["studies"] == 1
    path = tmp_path / "sim-opt-poisson-coder.json"
    found = raw.read(path)
    assert set(found["scenarios"]["coder"]) == {"vllm", "bound"}
    raw.write(path, found | {"dirty": False})
    again = run(capsys, *folder)
    assert (again["studies"], again["kept"]) == (0, 1)
    assert run(capsys, *folder, "--force")["studies"] == 1


def test_what_would_be_run_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--folder", str(tmp_path), "--trace", "some/code.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 * 6
    replayed = [line for line in lines if "--arrivals trace" in line]
    assert len(replayed) == 6
    assert all("code.csv" in line for line in replayed)
    assert "--preset opt-13b-tp2-a100" in replayed[0]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--parts", "magic", "--list"])
    assert stopped.value.code == 2


def test_a_study_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--folder", str(tmp_path), "--systems", "magic"]) == 1
    assert "magic" in capsys.readouterr().err
