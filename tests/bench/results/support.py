from typing import Any

REPORT = {
    "attainment": 0.92, "attainment_strict": 0.9, "deferred": 0.05, "rejected": 0.01, "ttft_s": [0.1, 0.2, None],
}  # fmt: skip
STRETCH = {
    "arrival_s": [0.0, 0.4, 0.5],
    "tier": ["chat", "chat", "code"],
    "ttft_ms": [100.0, 900.0, None],
    "ttft_slo_ms": [500.0, 500.0, 300.0],
    "tpot_ms": [40.0, 60.0, None],
    "ended_s": [2.0, 3.0, None],
    "verdict": ["admitted", "admitted", "deferred"],
    "attained": [1, 0, 0],
}
PREDICTED = {
    "tier": ["chat"], "ttft_ms": [90.0], "achieved_ttft_ms": [100.0], "tpot_ms": [40.0], "achieved_tpot_ms": [39.0],
}  # fmt: skip
TIER = {
    "requests": 2, "attained": 0.5, "ttft_ms": [100.0, 900.0], "ttft_over_slo": [0.2, None], "tpot_ms": [40.0, 60.0],
    "tpot_slo_ms": 100.0,
}  # fmt: skip


def found(capacity: float, run: bool = True) -> dict[str, Any]:
    of: dict[str, Any] = {
        "capacity": capacity,
        "by_seed": [0.9 * capacity, 1.1 * capacity],
        "deferred_ttft_over_slo_p99": 3.0,
        "report": REPORT,
        "points": [{"rate": capacity * k, "seed": 1, "attainment": 1 / k} for k in (1, 2)],
    }
    if run:
        of["run"] = {"rate": 4.0, "tiers": {"chat": TIER, "code": TIER}, "stretch": STRETCH, "predicted": PREDICTED}
    return of


def study(scenario: str, capacities: dict[str, float], **changes: Any) -> dict[str, Any]:
    settings = {
        "mode": "sim", "preset": "p100", "arrivals": "bursty", "workers": 4, "seconds": 30.0, "seeds": 2,
        "workload": None, "trace": None, "parameters": "25M",
    }  # fmt: skip
    systems = {name: found(rate, run=name != "bound") for name, rate in capacities.items()}
    raw: dict[str, Any] = {
        "format": 1,
        "command": f"python -m bench.capacity --scenario {scenario} --out {scenario}.json",
        "commit": "abc1234567",
        "dirty": False,
        "date": "2026-11-21T00:00:00+00:00",
        "machine": {"cpu": "a CPU", "cores": 2, "system": "Linux", "python": "3.11"},
        "capacity": capacities,
        "scenarios": {scenario: systems},
        "settings": settings,
    }
    return raw | changes
