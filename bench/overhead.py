"""``python -m bench.overhead``: what the product adds to one stock ``vllm serve``, on the same model and cores.

The product has one worker here, which does everything, as the stock server does. Light load: the same prompts one at a
time, to both in turn. Saturated: as many streams as fill the batches, in turns of some seconds. The last line is one
JSON object.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import numpy as np

from bench import ending
from bench.engine_runs import random_model
from bench.real.backends import Backend
from bench.real.cpu import Usage, usage
from bench.real.job import Answer, AnswerError, Job
from bench.real.load import random_prompt
from bench.real.systems import System, one_server, one_worker
from bench.results import raw
from bench.saying import say
from common.messages import Slo

PROMPT_TOKENS, LIGHT_TOKENS, OUTPUT_TOKENS = 256, 16, 64
EASY = Slo(ttft_ms=60_000.0, ttft_slowdown=None, tpot_ms=5_000.0)
"""A promise that never holds anything back."""
WARM_UP = 5
PRODUCT, STOCK = "product", "stock"


@dataclass(slots=True)
class Light:
    """What one request at a time took, seconds."""

    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Saturated:
    """What many streams got: tokens in these seconds, and the CPU that they took."""

    tokens: int = 0
    seconds: float = 0.0
    outside_s: float = 0.0
    engines_s: float = 0.0
    by_process_s: dict[str, float] = field(default_factory=dict)

    def add(self, tokens: int, seconds: float, used: Usage) -> None:
        """One more turn."""
        self.tokens += tokens
        self.seconds += seconds
        self.outside_s += used.total_outside_s
        self.engines_s += used.engines_s
        for name, one in used.outside_s.items():
            self.by_process_s[name] = self.by_process_s.get(name, 0.0) + one

    def per_1000(self, seconds: float) -> float:
        """Of 1,000 tokens."""
        return 1e3 * seconds / max(1, self.tokens)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--parameters", default="25M", help="size of the random model")
    parser.add_argument("--requests", type=int, default=120, help="under light load, to each")
    parser.add_argument("--streams", type=int, default=32, help="at a time when saturated")
    parser.add_argument("--turn-seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=3, help="of each when saturated")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="keep the logs of all processes here")
    raw.add_out(parser)
    arguments = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        result = ending.run(run(arguments, arguments.log_dir or Path(folder)))
    raw.keep(arguments.out, "bench.overhead", argv, result)
    print(json.dumps(result))


async def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = random_model(arguments.parameters)
    say("starting one stock server, then the product with one worker")
    async with one_server(model, folder / STOCK) as stock, one_worker(model, folder / PRODUCT) as product:
        systems = {STOCK: stock, PRODUCT: product}
        say("one request at a time ...")
        light = await take_turns(systems, arguments.requests)
        say(f"{arguments.streams} streams ...")
        saturated = {name: Saturated() for name in systems}
        for turn in range(arguments.turns):
            for name, system in systems.items():
                await saturate(system, arguments.streams, arguments.turn_seconds, turn, saturated[name])
    return figures(light, saturated) | {"settings": raw.settings(arguments)}


async def take_turns(systems: dict[str, System], requests: int) -> dict[str, Light]:
    """The same prompt to each system, one after the other, in changing order."""
    rng, found = Random(1), {name: Light() for name in systems}
    async with aiohttp.ClientSession() as http:
        for number in range(WARM_UP + requests):
            job = Job(number, random_prompt(rng, PROMPT_TOKENS), LIGHT_TOKENS, EASY)
            for name in sorted(systems, reverse=bool(number % 2)):
                begun_s, answer = await timed(systems[name].backend, http, job)
                if number >= WARM_UP:
                    times = answer.token_times_s
                    found[name].ttft_s.append(times[0] - begun_s)
                    found[name].tpot_s.append((times[-1] - times[0]) / (len(times) - 1))
    return found


async def timed(backend: Backend, http: aiohttp.ClientSession, job: Job) -> tuple[float, Answer]:
    """When it was sent, and what came; raises AnswerError if not all of it came."""
    answer, begun_s = Answer(), time.time()
    await backend.ask(http, job, answer)
    if len(answer.token_times_s) != job.output_tokens:
        raise AnswerError(f"{len(answer.token_times_s)} of {job.output_tokens} tokens came")
    return begun_s, answer


async def saturate(system: System, streams: int, seconds: float, seed: int, found: Saturated) -> None:
    """Keep so many streams busy; what comes in the middle of the time counts, when all of them run."""
    answers: list[Answer] = []

    async def stream(number: int) -> None:
        rng = Random(seed * streams + number)
        async with aiohttp.ClientSession() as http:
            while True:
                answers.append(Answer())
                job = Job(number, random_prompt(rng, PROMPT_TOKENS), OUTPUT_TOKENS, EASY)
                await system.backend.ask(http, job, answers[-1])

    tasks = [asyncio.create_task(stream(number)) for number in range(streams)]
    await asyncio.sleep(seconds / 4)
    before, begun_s = usage(system.processes), time.time()
    await asyncio.sleep(seconds)
    used, ended_s = usage(system.processes).since(before), time.time()
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    tokens = sum(begun_s <= time_s < ended_s for answer in answers for time_s in answer.token_times_s)
    found.add(tokens, ended_s - begun_s, used)


def figures(light: dict[str, Light], saturated: dict[str, Saturated]) -> dict[str, Any]:
    """The JSON object."""
    product, stock = saturated[PRODUCT], saturated[STOCK]
    rates = {name: found.tokens / found.seconds for name, found in saturated.items()}
    result: dict[str, Any] = {
        "added_ttft_ms_p50": added_ms(light[PRODUCT].ttft_s, light[STOCK].ttft_s, 0.5),
        "added_ttft_ms_p99": added_ms(light[PRODUCT].ttft_s, light[STOCK].ttft_s, 0.99),
        "added_tpot_ms_p50": added_ms(light[PRODUCT].tpot_s, light[STOCK].tpot_s, 0.5),
        "throughput_ratio": rates[PRODUCT] / rates[STOCK],
        "cpu_s_per_1000_tokens_outside_engines": product.per_1000(product.outside_s),
        "stock_cpu_s_per_1000_tokens_outside_engines": stock.per_1000(stock.outside_s),
        "cpu_s_per_1000_tokens_by_process": {name: product.per_1000(s) for name, s in product.by_process_s.items()},
        "tokens_per_s": rates,
        "engine_cpu_s_per_1000_tokens": {name: found.per_1000(found.engines_s) for name, found in saturated.items()},
        "ttft_ms_p50": {name: 1e3 * median(found.ttft_s) for name, found in light.items()},
        "tpot_ms_p50": {name: 1e3 * median(found.tpot_s) for name, found in light.items()},
    }
    return {name: rounded(value) for name, value in result.items()}


def added_ms(ours: Sequence[float], theirs: Sequence[float], quantile: float) -> float:
    """By how much a quantile is higher."""
    return float(np.quantile(ours, quantile) - np.quantile(theirs, quantile)) * 1e3


def rounded(value: Any) -> Any:
    return {name: round(one, 4) for name, one in value.items()} if isinstance(value, dict) else round(value, 4)


if __name__ == "__main__":
    main()
