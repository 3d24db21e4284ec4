"""Measures a :class:`bench.real.calibration.Calibration` through a stock server, as a client sees it."""

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from statistics import median

import aiohttp

from bench.real.backends import Backend
from bench.real.calibration import SEQUENCES, Calibration
from bench.real.job import Answer, Job
from bench.real.load import random_prompt

PROMPTS = (16, 64, 128, 256, 384, 512, 768, 1024)
CONTEXTS = (64, 256, 512, 1024)
REPEATS = 7
STEPS = 40


async def measure(backend: Backend) -> Calibration:
    """Zero-load TTFTs and steps of the backend's first server, which nobody else may use meanwhile."""
    server, rng = backend.targets[0], Random(0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        zero_load = await _zero_load(server, http, rng)
        steps = [(context, await _step_s(server, http, context, rng)) for context in CONTEXTS]
    return Calibration(_rising(zero_load), _rising(steps))


async def _zero_load(server: Backend, http: aiohttp.ClientSession, rng: Random) -> list[tuple[int, float]]:
    """By prompt, the median of :data:`REPEATS` rounds: a slow second is not one prompt's. A round before warms up."""
    found: dict[int, list[float]] = {tokens: [] for tokens in PROMPTS}
    for number in range(1 + REPEATS):
        for tokens, seconds in found.items():
            begun_s, answer = await _ask(server, http, Job(0, random_prompt(rng, tokens), 2))
            if number:
                seconds.append(answer.token_times_s[0] - begun_s)
    return [(tokens, median(seconds)) for tokens, seconds in found.items()]


async def _step_s(server: Backend, http: aiohttp.ClientSession, context: int, rng: Random) -> float:
    """Median time between tokens while all sequences decode."""
    jobs = [Job(n, random_prompt(rng, max(1, context - STEPS // 2)), STEPS + SEQUENCES) for n in range(SEQUENCES)]
    answers = [answer for _, answer in await asyncio.gather(*(_ask(server, http, job) for job in jobs))]
    begin_s = max(answer.token_times_s[0] for answer in answers)
    end_s = min(answer.token_times_s[-1] for answer in answers)
    gaps: list[float] = []
    for answer in answers:
        times = [one for one in answer.token_times_s if begin_s <= one <= end_s]
        gaps += [after - before for before, after in pairwise(times)]
    return median(gaps)


async def _ask(server: Backend, http: aiohttp.ClientSession, job: Job) -> tuple[float, Answer]:
    answer, begun_s = Answer(), time.time()
    await server.ask(http, job, answer)
    return begun_s, answer


def _rising(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Noise must not make a longer prompt quicker: it only ever adds, so nothing takes longer than what is longer."""
    found: list[tuple[int, float]] = []
    for x, y in reversed(points):
        found.append((x, min(y, found[-1][1]) if found else y))
    return tuple(reversed(found))
