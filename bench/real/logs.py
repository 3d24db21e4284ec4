"""What became of each request of a run, one JSON object a line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.case import WORKLOAD, Case
from bench.real.load import Sent


def path_for(folder: Path, case: Case) -> Path:
    """Named after the system, the workload, the rate and the seed."""
    spec = case.spec
    workload = case.workload.stem if case.workload is not None else f"{spec.scenario}-{spec.arrivals}"
    assert spec.scenario != WORKLOAD or case.workload is not None
    system = case.system.replace(" ", "-").lstrip("+-")
    return folder / f"{workload}-{system}-{spec.rate:.3f}-seed{spec.seed}.jsonl"


def write(path: Path, sent: Sequence[Sent], promises: bool) -> None:
    """Write a run's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line(one, promises)) + "\n" for one in sent))


def line(one: Sent, promises: bool) -> dict[str, Any]:
    """Times in seconds of the epoch, durations in milliseconds."""
    outcome, item = one.outcome(promises), one.item
    due = outcome.objective
    return {
        "tier": item.tier,
        "prompt_tokens": item.prompt_tokens,
        "output_tokens": item.output_tokens,
        "arrival_s": one.arrival_s,
        "late_ms": None if one.sent_s is None else _ms(one.sent_s - one.arrival_s),
        "slo_ttft_ms": None if due is None else _ms(due.ttft_s),
        "slo_tpot_ms": None if due is None else _ms(due.tpot_s),
        "verdict": outcome.verdict,
        "attained": outcome.attained(),
        "met": outcome.met(),
        "ttft_ms": _ms(outcome.ttft_s) if outcome.token_times_s else None,
        "tpot_ms": None if outcome.tpot_s is None else _ms(outcome.tpot_s),
        "tokens_ms": [_ms(time_s - one.arrival_s) for time_s in outcome.token_times_s],
        "predicted_ttft_ms": None if outcome.predicted_ttft_s is None else _ms(outcome.predicted_ttft_s),
        "ended_s": one.ended_s,
        "error": one.answer.error,
        **one.answer.notes,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
