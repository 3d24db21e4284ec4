"""``python -m bench.batch_policy``: token deadlines against static chunks, on one real engine.

Tight and loose decodes run all the time, each slot starting a new request when one ends, while long prompts arrive
at random. Every policy meets the same arrivals on the same engine in the same run. TPOTs follow the machine: tight
is three times, loose twelve times a step of all decodes.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from bench.engine_runs import SWITCHED, Answer, ask, greedy, random_model, random_prompt, running_engine, switch
from bench.results import raw
from bench.saying import say
from common.engine.interface import Job
from common.engine.vllm import VllmEngine
from common.latency_model import LatencyModel
from common.slo import Objective

TIGHT, LOOSE = 6, 8
DECODE_PROMPT, DECODE_OUTPUT = 256, (100, 400)
PROMPT_TOKENS = 2048
STATIC = (2048, 256, 128, 96, 64)
QUICK_STATIC = (2048, 256, 64)
WARM_S = 2.0
PROMPTS, LEAST_S = 8, 14.0
"""A run is long enough for so many prompts to come: on a slow machine few do, and their TTFT would be chance."""
MOST_MISSED = 0.01


@dataclass(frozen=True, slots=True)
class Scene:
    """What all policies meet; seconds."""

    tight_s: float
    loose_s: float
    tight_ttft_s: float
    loose_ttft_s: float
    prompt_ttft_s: float
    prompt_rate: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What one policy did: shares, seconds, and counts over all seeds."""

    tight_missed: float
    loose_missed: float
    tight_gap_p99_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    decode_tokens: int
    prompts: int


@dataclass(frozen=True, slots=True)
class Run:
    """Answers of one policy and seed; counting began at ``began_s``."""

    tight: list[Answer]
    loose: list[Answer]
    prompts: list[Answer]
    began_s: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.batch_policy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The last line printed is one JSON object.",
    )
    parser.add_argument("--model", help="model folder; default: a random one of --parameters, made if missing")
    parser.add_argument("--parameters", default="25M")
    parser.add_argument(
        "--duration",
        type=float,
        help=f"seconds of each policy and seed (default: in which {PROMPTS} prompts come, {LEAST_S:g} at least)",
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--load", type=float, default=0.5, help="share of the prefill capacity that prompts ask for")
    parser.add_argument("--quick", action="store_true", help="short and of few chunks: whether it runs, not how well")
    raw.add_out(parser)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.duration, arguments.seeds = 6.0, 1
    result = asyncio.run(run(arguments))
    raw.keep(arguments.out, "bench.batch_policy", argv, result)
    print(json.dumps(result))


async def run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    options: dict[str, Any] = {
        "model": arguments.model or random_model(arguments.parameters),
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
    }
    policies = ["slo", *(f"stock:{chunk}" for chunk in (QUICK_STATIC if arguments.quick else STATIC))]
    seen: dict[str, list[Run]] = {name: [] for name in policies}
    async with running_engine(SWITCHED, **options) as (engine, _):
        scene = scene_of(engine.latency, arguments.load, arguments.duration)
        tpots = f"TPOT {scene.tight_s * 1e3:.0f} and {scene.loose_s * 1e3:.0f} ms"
        say(f"{tpots}, {scene.prompt_rate:.2f} prompts/s for {scene.duration_s:.0f} s")
        for seed in range(1, arguments.seeds + 1):
            for policy in policies if seed % 2 else policies[::-1]:  # a machine's speed drifts
                await switch(engine, policy)
                seen[policy].append(await play(engine, scene, seed, policy))
                say(f"seed {seed} {policy}: {summary(seen[policy][-1:])}")
        errors = engine.load().policy_errors
    results = {policy: summary(runs) for policy, runs in seen.items()}
    return {**report(results), "scene": as_json(scene), "policy_errors": errors}


def scene_of(latency: LatencyModel, load: float, duration_s: float | None = None) -> Scene:
    """What an engine of that speed is asked for, prompts at ``load`` of what the tight decodes leave of it."""
    decode_s = latency.decode_seconds(TIGHT + LOOSE, (TIGHT + LOOSE) * (DECODE_PROMPT + 50))
    tight_s = 3 * decode_s
    short_s = latency.prefill_seconds(DECODE_PROMPT, 256)
    prompt_s = latency.prefill_seconds(PROMPT_TOKENS, 256)
    rate = load * (1 - decode_s / tight_s) / prompt_s
    lasts_s = max(LEAST_S, PROMPTS / rate) if duration_s is None else duration_s
    return Scene(tight_s, 4 * tight_s, 3 * short_s, 5 * short_s, 5 * prompt_s, rate, lasts_s)


async def play(engine: VllmEngine, scene: Scene, seed: int, policy: str) -> Run:
    """The same arrivals and lengths for every policy, and prompts of its own, or it would find others' cached."""
    tight: list[Answer] = []
    loose: list[Answer] = []
    prompts: list[Answer] = []
    kinds = [("tight", scene.tight_ttft_s, scene.tight_s, tight)] * TIGHT
    kinds += [("loose", scene.loose_ttft_s, scene.loose_s, loose)] * LOOSE
    texts = random.Random(f"{seed}-{policy}")
    slots = [
        asyncio.create_task(slot(engine, random.Random(f"{seed}-{number}"), texts, *kind))
        for number, kind in enumerate(kinds)
    ]
    await asyncio.sleep(WARM_S)
    began_s = time.time()
    rng, arrivals = random.Random(seed), []
    at_s = rng.expovariate(scene.prompt_rate)
    while at_s < scene.duration_s:
        await asyncio.sleep(max(0.0, began_s + at_s - time.time()))
        objective = Objective(began_s + at_s, scene.prompt_ttft_s, scene.loose_s)
        prompts.append(Answer(objective, began_s + at_s))
        job = Job("prompt", random_prompt(texts, PROMPT_TOKENS), greedy(1), tier="prompt", objective=objective)
        arrivals.append(asyncio.create_task(ask(engine, job, prompts[-1])))
        at_s += rng.expovariate(scene.prompt_rate)
    await asyncio.sleep(max(0.0, began_s + scene.duration_s - time.time()))
    for task in slots:
        task.cancel()
    await asyncio.gather(*slots, return_exceptions=True)
    await asyncio.gather(*arrivals)
    return Run(tight, loose, prompts, began_s)


async def slot(
    engine: VllmEngine,
    lengths: random.Random,
    texts: random.Random,
    tier: str,
    ttft_s: float,
    tpot_s: float,
    kept: list[Answer],
) -> None:
    while True:
        now_s = time.time()
        answer = Answer(Objective(now_s, ttft_s, tpot_s), now_s)
        kept.append(answer)
        job = Job(tier, random_prompt(texts, DECODE_PROMPT), greedy(lengths.randint(*DECODE_OUTPUT)), tier=tier)
        await ask(engine, replace(job, objective=answer.objective), answer)


def summary(runs: Sequence[Run]) -> Seen:
    tight = [answer for run in runs for answer in run.tight]
    loose = [answer for run in runs for answer in run.loose]
    ttfts = sorted(a.token_times_s[0] - a.started_s for run in runs for a in run.prompts if a.token_times_s)
    gaps = [gap for answer in tight for gap in np.diff(answer.token_times_s).tolist()]
    decoded = sum(
        t >= run.began_s for run in runs for kept in (run.tight, run.loose) for a in kept for t in a.token_times_s
    )
    return Seen(
        tight_missed=round(missed(tight), 5),
        loose_missed=round(missed(loose), 5),
        tight_gap_p99_s=round(float(np.quantile(gaps, 0.99)), 4) if gaps else 0.0,
        ttft_p50_s=round(median(ttfts), 4) if ttfts else float("inf"),
        ttft_p99_s=round(float(np.quantile(ttfts, 0.99)), 4) if ttfts else float("inf"),
        decode_tokens=decoded,
        prompts=len(ttfts),
    )


def missed(answers: Sequence[Answer]) -> float:
    """Share of tokens after the first that came after their deadline."""
    return sum(a.late() for a in answers) / max(1, sum(max(0, len(a.token_times_s) - 1) for a in answers))


def report(results: Mapping[str, Seen]) -> dict[str, Any]:
    static = {name: seen for name, seen in results.items() if name != "slo"}
    kept = {name: seen for name, seen in static.items() if seen.tight_missed <= MOST_MISSED}
    best = min(kept or static, key=lambda name: static[name].ttft_p50_s if kept else static[name].tight_missed)
    rows = {name.replace(":", ""): as_json(seen) for name, seen in static.items()}
    return {"ours": as_json(results["slo"]), "best_static": {"chunk": int(best[6:]), **as_json(static[best])}, **rows}


def as_json(value: Scene | Seen) -> dict[str, float]:
    return {name: getattr(value, name) for name in value.__slots__}


if __name__ == "__main__":
    main()
