"""``python -m bench.batch_cost``: how long one batch plan takes, by the number of sequences.

Two thirds decode under a promise, the rest are prompts under way or waiting, with and without a promise. ``cold`` is
with caches that something else has just filled, as an engine's step does.
"""

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from common.batching import BatchState, Candidate, Columns, form_batch, warm_up
from common.latency_model import LatencyModel, Piece

SEQUENCES = (16, 64, 256)
MODEL = LatencyModel((Piece(5.1e-5, 0.0, 0.014),), k_seq=1.69e-5, k_kv=8e-8, k_attn=1e-9)
NOW_S = 1_000_000.0
CACHE_BYTES = 64 << 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.batch_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The last line printed is one JSON object.",
    )
    parser.add_argument("--rounds", type=int, default=300)
    print(json.dumps(run(parser.parse_args(argv).rounds)))


def run(rounds: int) -> Mapping[str, float]:
    warm_up()
    filler = np.ones(CACHE_BYTES // 8)
    found = {}
    for count in SEQUENCES:
        for name, between in (("", None), ("_cold", filler)):
            times_ms = [_timed_ms(state, between) for state in _states(count, rounds)]
            for share, label in ((0.5, "p50"), (0.99, "p99")):
                found[f"sequences{count}{name}_{label}_ms"] = round(float(np.quantile(times_ms, share)), 4)
    return found


def _timed_ms(state: BatchState, between: np.ndarray | None) -> float:
    if between is not None:
        between.sum()
    began_s = time.perf_counter()
    form_batch(state, NOW_S)
    return (time.perf_counter() - began_s) * 1e3


def _states(count: int, rounds: int) -> list[BatchState]:
    rng = random.Random(count)
    return [
        BatchState(Columns.of([_candidate(rng, number) for number in range(count)]), MODEL, 50_000, 16, 8192, 512)
        for _ in range(rounds)
    ]


def _candidate(rng: random.Random, number: int) -> Candidate:
    promised, decoding = rng.random() < 0.8, rng.random() < 0.67
    return Candidate(
        id=f"request-{number}",
        todo_tokens=1 if decoding else rng.randint(20, 3000),
        context_tokens=rng.randint(100, 4000) if decoding else 0,
        arrival_s=NOW_S - rng.uniform(0, 20),
        due_s=NOW_S + rng.uniform(0.01, 0.3 if decoding else 3.0) if promised else inf,
        tpot_s=rng.choice((0.05, 0.1)) if promised else inf,
        checked_in=rng.randint(1, 10),
        promised=promised,
        running=decoding or rng.random() < 0.5,
    )


if __name__ == "__main__":
    main()
