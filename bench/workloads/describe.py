"""Statistics of a workload."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.workloads.item import Item


def describe(items: Sequence[Item]) -> dict[str, Any]:
    """Counts, arrivals and lengths, by tier and in all; JSON-ready."""
    return {
        "requests": len(items),
        "sessions": len({item.session for item in items}),
        "tenants": len({item.tenant for item in items}),
        "arrivals": _arrivals([item.arrival_s for item in items if item.after_s is None]),
        "tiers": {
            tier: _lengths([item for item in items if item.tier == tier]) for tier in sorted({i.tier for i in items})
        },
        "all": _lengths(items),
    }


def _arrivals(times: Sequence[float]) -> dict[str, float]:
    at_s = np.sort(np.array(times))
    if len(at_s) < 2:
        return {"count": len(at_s)}
    gaps = np.diff(at_s)
    per_second = np.bincount((at_s - at_s[0]).astype(np.int64))
    return {
        "count": len(at_s),
        "span_s": float(at_s[-1] - at_s[0]),
        "rate": float(1 / gaps.mean()) if gaps.mean() > 0 else 0.0,
        "gap_cv": float(gaps.std() / gaps.mean()) if gaps.mean() > 0 else 0.0,
        "per_second_max_over_mean": float(per_second.max() / per_second.mean()),
    }


def _lengths(items: Sequence[Item]) -> dict[str, Any]:
    return {
        "requests": len(items),
        "prompt_tokens": _spread([item.prompt_tokens for item in items]),
        "output_tokens": _spread([item.output_tokens for item in items]),
        "thinking_tokens": _spread([item.thinking_tokens for item in items]),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    array = np.array(values, dtype=np.float64)
    return {
        "mean": float(array.mean()),
        "std": float(array.std()),
        "p50": float(np.quantile(array, 0.5)),
        "p99": float(np.quantile(array, 0.99)),
    }
