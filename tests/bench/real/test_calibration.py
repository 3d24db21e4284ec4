import time
from pathlib import Path

import aiohttp
import pytest

from bench.real.calibration import Calibration, load, mean_context, objective_of, objectives_for
from bench.real.job import Answer, Job
from bench.real.measuring import measure
from bench.workloads import Item

CALIBRATION = Calibration(((16, 0.01), (256, 0.07), (1024, 0.28)), ((64, 0.010), (256, 0.012)))


def item(tier: str = "chat", prompt: int = 256, output: int = 64, **more: object) -> Item:
    return Item(0.0, "s", tier, prompt, output, **more)  # type: ignore[arg-type]


def test_zero_load_time_is_linear_between_what_was_measured_and_beyond() -> None:
    assert CALIBRATION.zero_load_s(136) == pytest.approx(0.04)
    assert CALIBRATION.zero_load_s(1792) == pytest.approx(0.49)
    assert CALIBRATION.zero_load_s(1) == pytest.approx(0.01)


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    CALIBRATION.save(tmp_path / "deeper" / "calibration.json")
    assert load(tmp_path / "deeper" / "calibration.json") == CALIBRATION


def test_a_tight_tpot_is_twice_and_a_loose_one_four_times_the_step_at_the_mean_context() -> None:
    items = [item("code", 224, 64), item("chat", 224, 64)]
    assert mean_context(items) == 256
    code, chat = objectives_for(CALIBRATION, items).slos(items)
    assert code is not None
    assert chat is not None
    assert [code.tpot_ms, chat.tpot_ms] == pytest.approx([24.0, 48.0])


def test_ttft_is_absolute_and_relative_to_the_zero_load_time_of_the_same_prompt() -> None:
    items = [item("summarize", 256), item("chat", 1024)]
    tight, loose = objectives_for(CALIBRATION, items).slos(items)
    assert tight is not None
    assert loose is not None
    assert [tight.ttft_ms, loose.ttft_ms] == pytest.approx([210.0, 1400.0])
    assert tight.ttft_slowdown is None


def test_the_last_round_of_a_session_has_a_looser_tpot() -> None:
    items = [item("tool"), item("tool", after_s=1.0)]
    first, last = objectives_for(CALIBRATION, items).slos(items)
    assert first is not None
    assert last is not None
    assert last.tpot_ms == 2 * first.tpot_ms


class SlowToBegin:
    """A server of 1 ms a prompt token and 10 ms a step, whose first requests and shortest prompts were held up."""

    promises = False

    def __init__(self) -> None:
        self.targets = [self]
        self.asked = 0

    async def ask(self, _http: aiohttp.ClientSession, job: Job, answer: Answer) -> None:
        self.asked += 1
        held_up_s = 5.0 if self.asked <= 8 else 2.0 if len(job.prompt) == 16 else 0.0
        first_s = time.time() + 1e-3 * len(job.prompt) + held_up_s
        answer.token_times_s += [first_s + 0.01 * step for step in range(job.output_tokens)]


async def test_what_was_held_up_when_measured_makes_nothing_else_slower() -> None:
    found = await measure(SlowToBegin())
    assert found.zero_load_s(64) == pytest.approx(0.064, abs=0.02)
    assert found.zero_load_s(16) == found.zero_load_s(64)
    assert found.zero_load_s(1024) == pytest.approx(1.024, abs=0.02)
    assert found.step_s(512) == pytest.approx(0.01)


def test_best_effort_has_no_objective() -> None:
    assert objectives_for(CALIBRATION, [item("batch")]).slos([item("batch")]) == [None]
    assert objective_of(None, 0.0) is None
