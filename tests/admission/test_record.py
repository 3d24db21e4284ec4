"""The log of plans and its replay."""

import random
from dataclasses import fields, replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from admission.memory import SurvivalLearner
from admission.plan import Plan, Worker
from admission.policies.ours import Ours
from admission.record import PlanEntry, PlanLog, WorkerEntry, read_log, replay
from common.errors import CodecError
from common.messages import Stage
from tests.admission.follower import Follower
from tests.admission.test_promises import MODELS, fleet, workload
from tests.factories import make_held, make_state, make_worker

NOW_S = 100.0


def a_plan(path: Path, max_bytes: int = 1 << 20, count: int = 1) -> None:
    log = PlanLog(path, max_bytes=max_bytes)
    for _ in range(count):
        state = make_state([make_held()])
        log.add("ours", state, NOW_S, Ours().plan(state, NOW_S))
    log.close()


@given(st.integers(0, 10**6))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_replay_decides_as_the_log_says(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    learner = SurvivalLearner(refresh=1)
    for _ in range(50):
        learner.observe("chat", rng.randint(1, 300))
    model = MODELS["small"]
    follower = Follower(Ours(), fleet(rng, model), learner.snapshot())
    follower.keep_plans = True
    follower.run(workload(rng, 20, model, 20.0))
    path = tmp_path / f"{seed}.log"
    path.unlink(missing_ok=True)
    log = PlanLog(path)
    for state, now_s, plan in follower.plans:
        log.add("ours", state, now_s, plan)
    log.close()
    assert list(replay(path)) == []
    assert len(list(read_log(path))) > 0


def test_what_was_planned_can_be_read_while_the_log_goes_on(tmp_path: Path) -> None:
    log, state = PlanLog(tmp_path / "log"), make_state([make_held()])
    for count in (1, 2):
        log.add("ours", state, NOW_S, Ours().plan(state, NOW_S))
        assert len(list(read_log(tmp_path / "log"))) == count
    log.close()


def test_a_replay_names_the_decision_that_differs(tmp_path: Path) -> None:
    a_plan(tmp_path / "log")
    differences = list(replay(tmp_path / "log", lambda _state, _now_s: Plan({}, {}, {})))
    assert [difference.replayed for difference in differences] == [None]
    assert differences[0].logged is not None


def measured_fleet() -> dict[str, Worker]:
    """Workers that have measured something."""
    measured = {"fingerprint": "f", "step_s": 0.01, "draft_tokens": 2.5, "pull_s": 2e-5, "slowdown": 1.25}
    measured["busy_until_s"] = NOW_S + 0.001
    fleet = [make_worker(id="p", **measured), make_worker(id="d", prefers=Stage.DECODE, **measured)]
    return {worker.id: worker for worker in fleet}


def test_every_field_of_a_worker_has_its_place() -> None:
    assert {field.name for field in fields(WorkerEntry)} == {field.name for field in fields(Worker)}


def test_a_log_from_before_pulls_and_drafts_were_measured_is_read_as_without(tmp_path: Path) -> None:
    a_plan(tmp_path / "log")
    data = (tmp_path / "log").read_bytes()
    version, tag, body = msgpack.unpackb(data[4:])
    workers = [field.name for field in fields(PlanEntry)].index("workers")
    then = [field.name for field in fields(WorkerEntry)].index("draft_tokens")
    body[workers] = [worker[:then] for worker in body[workers]]
    old = msgpack.packb([version, tag, body])
    (tmp_path / "log").write_bytes(len(old).to_bytes(4, "little") + old)
    [(_, state)] = read_log(tmp_path / "log")
    assert [(worker.draft_tokens, worker.pull_s) for worker in state.workers.values()] == [(1.0, 0.0)] * 2
    assert list(replay(tmp_path / "log")) == []


def test_what_is_read_is_what_was_planned(tmp_path: Path) -> None:
    state = make_state([make_held()], workers=measured_fleet(), arriving=1234.5)
    log = PlanLog(tmp_path / "log")
    log.add("ours", state, NOW_S, Ours().plan(state, NOW_S))
    log.close()
    [(_, read)] = read_log(tmp_path / "log")
    assert read == replace(state, held=tuple(state.held), running=())
    assert list(replay(tmp_path / "log")) == []


def test_the_log_is_bounded_and_each_file_can_be_replayed(tmp_path: Path) -> None:
    a_plan(tmp_path / "log", max_bytes=5000, count=40)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 10_000
    assert list(replay(tmp_path / "log.1")) == []


def test_a_last_entry_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    a_plan(tmp_path / "log", count=2)
    data = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(data[:-3])
    assert len(list(read_log(tmp_path / "log"))) == 1


def test_another_file_is_not_taken_for_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\x05\x00\x00\x00hello")
    with pytest.raises(CodecError):
        list(read_log(tmp_path / "log"))


def test_a_log_of_options_that_are_no_more_is_refused_by_name(tmp_path: Path) -> None:
    a_plan(tmp_path / "log")
    data = (tmp_path / "log").read_bytes()
    version, tag, body = msgpack.unpackb(data[4:])
    options = [field.name for field in fields(PlanEntry)].index("options")
    body[options]["longest_batch_s"] = 0.15
    old = msgpack.packb([version, tag, body])
    (tmp_path / "log").write_bytes(len(old).to_bytes(4, "little") + old)
    with pytest.raises(CodecError, match=r"another version .*longest_batch_s"):
        list(replay(tmp_path / "log"))
