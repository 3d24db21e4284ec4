"""What a worker's process says while it starts."""

from typing import Any

import pytest

from common.worker import process


def test_a_measurement_s_progress_is_logged_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(process, "log", type("Log", (), {"info": lambda _, text, done: told.append(done)})())
    tick = process.progress()
    for step in range(1, 48):
        tick(step / 47)
    assert told == ["21%", "43%", "64%", "85%", "100%"]
