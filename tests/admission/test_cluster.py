"""What the planner reads from heartbeats."""

import math
from dataclasses import replace

import pytest

from admission.cluster import Cluster
from common.messages import Progress
from tests.common.bus.steps import heartbeat


def test_a_worker_is_planned_with_what_it_measured() -> None:
    cluster = Cluster()
    cluster.beat({"w": replace(heartbeat("w"), step_ms=4.0, pull_s_per_token=2e-5, draft_tokens=2.5, slowdown=1.3)})
    worker = cluster.workers["w"]
    assert (worker.step_s, worker.pull_s, worker.draft_tokens, worker.slowdown) == (0.004, 2e-5, 2.5, 1.3)


def test_a_worker_that_has_measured_nothing_pulls_at_once_and_has_no_drafts() -> None:
    cluster = Cluster()
    cluster.beat({"w": heartbeat("w")})
    assert (cluster.workers["w"].pull_s, cluster.workers["w"].draft_tokens) == (0.0, 1.0)


def test_a_first_token_says_when_an_iteration_of_its_worker_ended() -> None:
    cluster = Cluster()
    cluster.beat({"w": heartbeat("w"), "v": heartbeat("v")})
    cluster.progressed(Progress("r", 1, "w", 1, False, 50.0))
    cluster.progressed(Progress("s", 1, "w", 1, False, 49.0))
    assert (cluster.workers["w"].stepped_s, cluster.workers["v"].stepped_s) == (50.0, 0.0)
    cluster.beat({"v": heartbeat("v")})
    cluster.beat({"w": heartbeat("w"), "v": heartbeat("v")})
    assert cluster.workers["w"].stepped_s == 0.0


def test_a_worker_is_busy_until_what_its_frames_last_said() -> None:
    cluster = Cluster()
    cluster.beat({"w": heartbeat("w"), "v": heartbeat("v")})
    cluster.busy({"w": 70.0, "gone": 80.0})
    assert (cluster.workers["w"].busy_until_s, cluster.workers["v"].busy_until_s) == (70.0, 0.0)


def test_a_worker_is_made_anew_only_when_something_new_is_known_of_it() -> None:
    cluster = Cluster()
    states = {name: heartbeat(name) for name in "vw"}
    cluster.beat(states)
    v = cluster.workers["v"]
    cluster.busy({"w": 70.0})
    cluster.progressed(Progress("r", 1, "w", 1, False, 50.0))
    assert cluster.workers["v"] is v
    assert (cluster.workers["w"].busy_until_s, cluster.workers["w"].stepped_s) == (70.0, 50.0)
    cluster.beat(states | {"v": replace(states["v"], free_blocks=7)})
    assert cluster.workers["v"].free_blocks == 7
    cluster.beat(states | {"v": replace(states["v"], draining=True)})
    assert list(cluster.workers) == ["w"]
    cluster.clear()
    assert not cluster.workers


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_figures_that_can_not_be_are_as_though_nothing_had_been_measured(value: float) -> None:
    cluster = Cluster()
    odd = replace(heartbeat("w"), step_ms=value, pull_s_per_token=value, draft_tokens=value, slowdown=value)
    cluster.beat({"w": odd})
    worker = cluster.workers["w"]
    assert (worker.step_s, worker.pull_s, worker.draft_tokens, worker.slowdown) == (0.0, 0.0, 1.0, 1.0)
