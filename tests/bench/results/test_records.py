import math

from bench.outcome import Outcome
from bench.results.records import STRETCH, Records
from bench.workloads.item import Item
from common.messages import Verdict
from common.slo import Objective


def outcome(at_s: float, ttft_s: float | None = 0.2, predicted_s: float | None = 0.1, tier: str = "chat") -> Outcome:
    times = () if ttft_s is None else (at_s + ttft_s, at_s + ttft_s + 0.05)
    return Outcome(
        item=Item(at_s, "s", tier, 10, 2),
        objective=Objective(at_s, 1.0, 0.1),
        verdict=Verdict.ADMITTED if times else Verdict.DEFERRED,
        token_times_s=times,
        arrival_s=at_s,
        ended_s=times[-1] if times else None,
        predicted_ttft_s=predicted_s,
    )


def test_the_densest_stretch_is_kept() -> None:
    calm = [outcome(1000 + 2.0 * i) for i in range(STRETCH)]
    burst = [outcome(3000 + 0.01 * i) for i in range(50)]
    found = Records(1.0, 1, [*burst, *calm]).as_json()
    arrivals = found["stretch"]["arrival_s"]
    assert len(arrivals) == STRETCH
    assert sum(2000 <= at_s < 2001 for at_s in arrivals) == len(burst)
    assert arrivals == sorted(arrivals)
    assert found["requests"] == STRETCH + len(burst)


def test_what_never_came_is_none() -> None:
    found = Records(1.0, 1, [outcome(5.0), outcome(6.0, ttft_s=None)]).as_json()
    assert found["stretch"]["ttft_ms"] == [200.0, None]
    assert found["stretch"]["ended_s"] == [0.25, None]
    assert found["stretch"]["attained"] == [1, 0]
    assert found["tiers"]["chat"]["ttft_ms"][-1] is None
    assert found["tiers"]["chat"]["ttft_over_slo"][0] == 0.2


def test_predictions_are_of_promises() -> None:
    found = Records(1.0, 1, [outcome(1.0), outcome(2.0, ttft_s=None), outcome(3.0, predicted_s=None)]).as_json()
    assert found["predicted"]["ttft_ms"] == [100.0]
    assert found["predicted"]["achieved_ttft_ms"] == [200.0]


def test_tiers_are_apart() -> None:
    found = Records(1.0, 1, [outcome(1.0), outcome(1.5, ttft_s=2.0, tier="code")]).as_json()
    assert [found["tiers"][tier]["attained"] for tier in ("chat", "code")] == [1.0, 0.0]
    assert all(math.isclose(one["tpot_slo_ms"], 100.0) for one in found["tiers"].values())
