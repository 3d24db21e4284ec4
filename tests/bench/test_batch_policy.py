from dataclasses import replace

from bench.batch_cost import run
from bench.batch_policy import LEAST_S, PROMPTS, Seen, missed, report, scene_of
from bench.engine_runs import Answer
from common.latency_model import LatencyModel, Piece
from common.slo import Objective

SEEN = Seen(0.0, 0.0, 0.05, 1.0, 2.0, 1000, 10)


def test_the_best_static_chunk_is_the_quickest_that_keeps_deadlines() -> None:
    results = {
        "slo": SEEN,
        "stock:2048": replace(SEEN, tight_missed=0.2, ttft_p50_s=0.5),
        "stock:128": replace(SEEN, tight_missed=0.01, ttft_p50_s=1.5),
        "stock:64": replace(SEEN, ttft_p50_s=1.7),
    }
    assert report(results)["best_static"]["chunk"] == 128


def test_where_no_static_chunk_keeps_deadlines_the_best_misses_least() -> None:
    results = {
        "slo": SEEN,
        "stock:2048": replace(SEEN, tight_missed=0.2, ttft_p50_s=0.5),
        "stock:64": replace(SEEN, tight_missed=0.1, ttft_p50_s=1.7),
    }
    assert report(results)["best_static"]["chunk"] == 64


def test_tokens_after_the_first_count_against_their_own_deadlines() -> None:
    answer = Answer(Objective(100.0, 1.0, 0.1), 100.0, [100.5, 101.05, 101.3, 101.29])
    assert missed([answer]) == 1 / 3  # due at 101.1, 101.2 and 101.3


def test_a_run_lasts_until_prompts_have_come_however_slow_the_engine() -> None:
    quick, slow = (LatencyModel((Piece(k, 0.0, 25 * k),)) for k in (1e-5, 1e-3))
    assert scene_of(quick, 0.5).duration_s == LEAST_S
    scene = scene_of(slow, 0.5)
    assert scene.duration_s > LEAST_S
    assert scene.prompt_rate * scene.duration_s >= PROMPTS - 1e-6
    assert scene_of(slow, 0.5, 6.0).duration_s == 6.0


def test_the_cost_of_plans_is_measured_warm_and_cold() -> None:
    found = run(rounds=2)
    assert all(value > 0 for value in found.values())
    assert {"sequences256_p50_ms", "sequences256_cold_p99_ms"} <= set(found)
