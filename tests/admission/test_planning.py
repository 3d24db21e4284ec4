"""Which policy plans, what is refused before it, and what is logged and told of each plan."""

from pathlib import Path

import pytest

from admission.plan import ClusterState, Plan
from admission.policies.ours import Ours
from admission.record import read_log, replay
from common.bus.memory import MemoryBus
from common.messages import Decision, Overload, Slo, State, Verdict
from common.telemetry import metrics
from tests.factories import arriving
from tests.pipeline import running_pipeline, until

REJECTION = Decision(verdict=Verdict.REJECTED, reason="test", cycle=0, decided_s=0.0)


class Broken:
    calls = 0

    def warm_up(self) -> None:
        pass

    def plan(self, state: ClusterState, now_s: float) -> Plan:
        self.calls += 1
        raise RuntimeError("a bug")


async def test_a_policy_that_raises_is_replaced_by_first_come_first_served_and_counted() -> None:
    bus = MemoryBus()
    failed = metrics.PLAN_ERRORS.labels("edf")._value
    before = failed.get()
    async with running_pipeline(bus, policy="edf") as pipeline:
        pipeline.services[0].planning.use(Broken())
        request = arriving()
        await bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.state is State.DONE
        assert record.decision is not None
        assert record.decision.reason == "unplanned"
        assert failed.get() > before
        assert metrics.FALLBACK._value.get() == 1


async def test_where_the_fallback_fails_too_requests_stay_held_and_planning_goes_on() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, policy="edf") as pipeline:
        planning = pipeline.services[0].planning
        broken = Broken()
        working, planning._fallback = planning._fallback, broken
        planning.use(Broken())
        request = arriving()
        await bus.submit(request, 100)
        await until(lambda: broken.calls > 0)
        assert request.id in planning.window
        planning._fallback = working
        assert (await pipeline.ended(request.id)).state is State.DONE


async def test_a_policy_that_can_not_be_compiled_leaves_planning_to_a_simpler_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_compiler(_: Ours) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Ours, "warm_up", no_compiler)
    bus, failed = MemoryBus(), metrics.PLAN_ERRORS.labels("ours")._value
    before = failed.get()
    async with running_pipeline(bus, policy="ours", plan_log=tmp_path / "log") as pipeline:
        await until(lambda: failed.get() > before)
        request = arriving()
        await bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.state is State.DONE
        assert record.decision is not None
        assert record.decision.verdict is Verdict.ADMITTED
        assert metrics.FALLBACK._value.get() == 1
    assert [entry.policy for entry, _ in read_log(tmp_path / "log")] == ["edf"]
    assert list(replay(tmp_path / "log")) == []


async def test_nobody_is_alarmed_once_the_policy_is_compiled_though_nothing_was_planned_since() -> None:
    metrics.FALLBACK.set(1)
    async with running_pipeline(MemoryBus(), policy="ours"):
        await until(lambda: metrics.FALLBACK._value.get() == 0)


async def test_a_decision_tells_what_it_was_made_from() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus) as pipeline:
        request = arriving()
        await bus.submit(request, 100)
        decision = (await pipeline.ended(request.id)).decision
        assert decision is not None
        inputs = dict(decision.inputs)
        assert inputs.pop("hop_ms") >= 0
        assert inputs.pop("waited_ms") >= 0
        tokens = len(request.prompt)
        assert inputs == {"held": 1, "running": 0, "workers": 2, "need_tokens": tokens, "cached_tokens": 0}


async def test_a_policy_that_is_chosen_stays_when_the_configured_one_is_warm_and_is_not_logged(tmp_path: Path) -> None:
    class Once(Broken):
        def plan(self, state: ClusterState, now_s: float) -> Plan:
            return Plan({}, {}, {one.id: REJECTION for one in state.held})

    path = tmp_path / "plans.log"
    async with running_pipeline(MemoryBus(), plan_log=path) as pipeline:
        planning = pipeline.services[0].planning
        planning.use(Once())
        planning.warm_up()
        request = arriving()
        await pipeline.bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.state is State.REJECTED
    assert not path.exists() or list(read_log(path)) == []


async def test_an_slo_that_no_engine_can_meet_is_refused_with_what_is_possible_and_no_retry() -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, policy="ours") as pipeline:
        request = arriving(slo=Slo(ttft_ms=0.5, ttft_slowdown=None, tpot_ms=100.0), overload=Overload.REJECT)
        await bus.submit(request, 100)
        record = await pipeline.ended(request.id)
        assert record.end is not None
        assert record.state is State.REJECTED
        assert record.end.detail.startswith("slo_unattainable: TTFT is at least")
        assert record.end.retry_after_s is None


@pytest.mark.parametrize("policy", ["edf", "fcfs"])
async def test_a_ttft_below_the_zero_load_time_is_refused_whatever_is_wanted_on_overload(policy: str) -> None:
    bus = MemoryBus()
    async with running_pipeline(bus, policy=policy) as pipeline:
        slo = Slo(ttft_ms=0.5, ttft_slowdown=None, tpot_ms=100.0)
        requests = [arriving(slo=slo, overload=overload) for overload in Overload]
        for request in requests:
            await bus.submit(request, 100)
        for request in requests:
            record = await pipeline.ended(request.id)
            assert record.end is not None
            assert (record.state, record.end.retry_after_s) == (State.REJECTED, None)
            assert record.end.detail.startswith("slo_unattainable: TTFT is at least 2.0 ms")


async def test_the_product_s_policy_takes_over_once_it_is_compiled() -> None:
    async with running_pipeline(MemoryBus(), policy="ours") as pipeline:
        planning = pipeline.services[0].planning
        await until(lambda: isinstance(planning._policy, Ours))


async def test_plans_are_logged_and_replay_to_the_same_decisions(tmp_path: Path) -> None:
    path = tmp_path / "plans.log"
    async with running_pipeline(MemoryBus(), policy="ours", plan_log=path) as pipeline:
        await until(lambda: isinstance(pipeline.services[0].planning._policy, Ours))
        requests = [arriving() for _ in range(10)]
        for request in requests:
            await pipeline.bus.submit(request, 100)
        for request in requests:
            await pipeline.ended(request.id)
    assert all(state.arriving > 0 for _, state in read_log(path))
    logged = [decided.request for entry, _ in read_log(path) for decided in entry.dispatch]
    assert sorted(logged) == sorted(request.id for request in requests)
    assert list(replay(path)) == []


async def test_refusals_of_what_is_impossible_and_plans_of_the_fallback_are_logged_and_replay(tmp_path: Path) -> None:
    path, bus = tmp_path / "plans.log", MemoryBus()
    impossible = arriving(slo=Slo(ttft_ms=0.5, ttft_slowdown=None, tpot_ms=100.0))
    possible = arriving()
    async with running_pipeline(bus, policy="edf", plan_log=path) as pipeline:
        await bus.submit(impossible, 100)
        record = await pipeline.ended(impossible.id)
        assert record.decision is not None
        assert record.decision.inputs["need_tokens"] == len(impossible.prompt)
        pipeline.services[0].planning.use(Broken())
        await bus.submit(possible, 100)
        await pipeline.ended(possible.id)
    entries = [entry for entry, _ in read_log(path)]
    assert [entry.policy for entry in entries] == ["impossible", "fcfs"]
    assert [[one.request for one in entry.reject] for entry in entries] == [[impossible.id], []]
    assert [one.request for one in entries[1].dispatch] == [possible.id]
    assert list(replay(path)) == []
