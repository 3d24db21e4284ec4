"""Workloads: what is asked for, when, and how long it is. A workload is a pair of lengths and arrivals."""

from bench.workloads.describe import describe
from bench.workloads.file import read_workload, write_workload
from bench.workloads.generate import Arrivals, WorkloadSpec, generate
from bench.workloads.item import Item
from bench.workloads.scale import scale_lengths, scale_rate
from bench.workloads.scenarios import SCENARIOS, Scenario

__all__ = [
    "SCENARIOS",
    "Arrivals",
    "Item",
    "Scenario",
    "WorkloadSpec",
    "describe",
    "generate",
    "read_workload",
    "scale_lengths",
    "scale_rate",
    "write_workload",
]
