"""Published statistics of the traces; compared with the files where ``SLOS_AZURE_TRACES`` names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from bench.workloads.azure import CODE_RATE, CONVERSATION_RATE, code_arrivals, conversation_arrivals
from bench.workloads.describe import describe
from bench.workloads.item import Item
from bench.workloads.traces import read_trace


def statistics(times: np.ndarray) -> tuple[float, float, float]:
    items = [Item(float(time), f"s{i}", "chat", 1, 1) for i, time in enumerate(times)]
    arrivals = describe(items)["arrivals"]
    return arrivals["rate"], arrivals["gap_cv"], arrivals["per_second_max_over_mean"]


def test_code_arrivals_come_in_runs_as_in_the_trace() -> None:
    drawn = [statistics(code_arrivals(3436.0, np.random.default_rng(seed))) for seed in range(12)]
    rate, cv, peak = np.median(drawn, axis=0)
    assert rate == pytest.approx(CODE_RATE, rel=0.15)
    assert cv == pytest.approx(13.2, rel=0.1)
    assert peak == pytest.approx(26, rel=0.2)


def test_conversation_arrivals_are_nearly_poisson_as_in_the_trace() -> None:
    drawn = [statistics(conversation_arrivals(3500.0, np.random.default_rng(seed))) for seed in range(6)]
    rate, cv, peak = np.median(drawn, axis=0)
    assert rate == pytest.approx(CONVERSATION_RATE, rel=0.05)
    assert cv == pytest.approx(1.09, rel=0.05)
    assert peak == pytest.approx(2.9, rel=0.2)


@pytest.mark.parametrize(
    ("name", "count", "rate", "cv", "peak"),
    [("code.csv", 8819, CODE_RATE, 13.2, 26), ("conv.csv", 19366, CONVERSATION_RATE, 1.09, 2.9)],
)
def test_the_trace_files_have_the_statistics_that_the_generator_copies(
    name: str, count: int, rate: float, cv: float, peak: float
) -> None:
    folder = os.environ.get("SLOS_AZURE_TRACES")
    if folder is None or not (Path(folder) / name).exists():
        pytest.skip("SLOS_AZURE_TRACES names no folder with the Azure traces")
    items = read_trace(Path(folder) / name)
    assert len(items) == count
    found = statistics(np.array([item.arrival_s for item in items]))
    assert found == pytest.approx((rate, cv, peak), rel=0.03)
