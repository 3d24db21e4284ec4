"""``python -m bench.latency_model``: how well the latency model predicts the real engine's steps.

Offline: profiled as a worker profiles it, then held against steps of random traffic (prefill and decode mixed) that
it has not seen. Online: the same traffic, each step predicted by the model refined on the steps before it, counted
from step 200 on; it starts from a profile that is wrong by half.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.engine_runs import greedy, random_model, random_prompt, running_engine
from bench.results import raw
from bench.saying import say
from common.engine.interface import Job
from common.engine.profile import evaluate, measure
from common.engine.refine import Refiner
from common.engine.vllm import VllmEngine
from common.latency_model import Batch, LatencyModel
from common.messages import StepSample

CLIENTS = 12
COUNTED_FROM = 200
WRONG = 1.5


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The last line printed is one JSON object.",
    )
    parser.add_argument("--model", help="model folder; default: a random one of --parameters, made if missing")
    parser.add_argument("--parameters", default="25M")
    parser.add_argument("--requests", type=int, default=120, help="requests of the held-back traffic (default 120)")
    parser.add_argument("--quick", action="store_true", help="little traffic: whether it runs, not how well")
    raw.add_out(parser)
    arguments = parser.parse_args(argv)
    result = asyncio.run(run(arguments))
    raw.keep(arguments.out, "bench.latency_model", argv, result)
    print(json.dumps(result))


async def run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    options: dict[str, Any] = {"model": arguments.model or random_model(arguments.parameters), "max_model_len": 4096}
    async with running_engine(None, profile=False, **options) as (engine, facts):
        say("profiling")
        profiled = await measure(engine, facts, lambda share: say(f"profiled {share:.0%}"))
        engine.latency = profiled.latency
        say("running held-back traffic")
        samples = await traffic(engine, 25 if arguments.quick else arguments.requests)
        errors = engine.load().policy_errors
    held_back = evaluate(profiled.latency, samples)
    say("refining online")
    online = await refined(samples, profiled.latency)
    return {
        "r2": round(held_back.r2, 4),
        "mape": round(held_back.mape, 4),
        "online_mape": round(online, 4),
        "steps": len(samples),
        "grid_r2": round(profiled.r2, 4),
        "grid_mape": round(profiled.mape, 4),
        "policy_errors": errors,
    }


async def traffic(engine: VllmEngine, requests: int) -> list[StepSample]:
    """Steps of random requests under the engine's own batch policy."""
    rng = random.Random(5)
    jobs = [
        Job(f"r{number}", random_prompt(rng, int(rng.lognormvariate(5.5, 1.0)) % 3000 + 8), greedy(rng.randint(1, 120)))
        for number in range(requests)
    ]
    engine.take_samples()
    samples: list[StepSample] = []

    async def client() -> None:
        while jobs:
            async for _ in engine.generate(jobs.pop()):
                pass
            samples.extend(engine.take_samples())

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return samples + engine.take_samples()


async def refined(samples: Sequence[StepSample], profile: LatencyModel) -> float:
    """Mean absolute relative error of steps predicted before they are learned from."""
    refiner = Refiner(profile.scaled(WRONG), lambda _: None)
    errors = []
    for sample in samples:
        batch = Batch(sample.tokens, sample.seqs, sample.kv_tokens, sample.attended, sample.draft_steps)
        errors.append(abs(refiner.slowdown * refiner.latency.seconds(batch) / sample.seconds - 1))
        refiner.add(sample)
        await refiner.refine()
    return float(np.mean(errors[COUNTED_FROM:] or errors))


if __name__ == "__main__":
    main()
