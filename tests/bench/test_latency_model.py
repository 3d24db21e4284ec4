"""What ``bench.latency_model`` says of a model, without an engine."""

import random
from collections.abc import Callable

from bench.latency_model import COUNTED_FROM, refined
from common.latency_model import Batch, LatencyModel, Piece
from common.messages import StepSample

TRUE = LatencyModel((Piece(1e-4, 0.0, 0.005),), k_seq=1e-4, k_kv=1e-7, k_attn=1e-8)


def steps(count: int, factor: Callable[[int], float] = lambda _: 1.0) -> list[StepSample]:
    rng = random.Random(2)
    found = []
    for i in range(count):
        seqs, prompt = rng.randint(1, 30), rng.choice([0, 0, rng.randint(1, 1000)])
        batch = Batch(seqs + prompt, seqs + (prompt > 0), 300 * seqs, prompt * prompt / 2)
        seconds = factor(i) * TRUE.seconds(batch)
        found.append(StepSample(batch.tokens, batch.seqs, batch.kv_tokens, batch.attended, 0, seconds))
    return found


async def test_a_start_that_is_wrong_is_forgotten_before_steps_are_counted() -> None:
    assert await refined(steps(COUNTED_FROM + 100), TRUE) < 0.01


async def test_each_step_is_predicted_before_it_is_learned_from() -> None:
    surprise = steps(COUNTED_FROM + 1, lambda i: 3.0 if i == COUNTED_FROM else 1.0)
    assert 0.6 < await refined(surprise, TRUE) < 0.7


async def test_few_steps_are_all_counted() -> None:
    assert await refined(steps(1), TRUE) > 0.4
