"""What benchmarks of a single real engine share: its start, its latency model, clients, and progress on stderr."""

import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.saying import say
from common.codec import Tokens
from common.engine.interface import Facts, Job
from common.engine.profile import measure
from common.engine.vllm import VllmEngine
from common.messages import Sampling
from common.settings import Settings
from common.slo import Objective

MODELS = Path(".cache/models")
FIRST_TOKEN, VOCABULARY = 300, 2000
SWITCHED = "bench.switching.SwitchedScheduler"
SWITCH = "switch:"
"""What the tier of a job that changes the policy of a switched engine begins with."""


def random_model(parameters: str) -> str:
    """Folder of a random model of that size, made if it is not there."""
    folder = MODELS / f"random-{parameters}"
    if not (folder / "model.safetensors").exists():
        say(f"making a random model of {parameters} parameters")
        command = [sys.executable, "-m", "bench.tiny_model.random_model", "--out", str(folder)]
        subprocess.run([*command, "--parameters", parameters], check=True, stdout=subprocess.DEVNULL)
    return str(folder)


@asynccontextmanager
async def running_engine(
    scheduler_cls: str | None, profile: bool = True, **options: Any
) -> AsyncIterator[tuple[VllmEngine, Facts]]:
    """A started engine, with a measured latency model unless ``profile`` is off."""
    say("starting the engine")
    engine = VllmEngine(Settings(**options), scheduler_cls=scheduler_cls)
    facts = await engine.start()
    try:
        if profile:
            say("measuring its latency model")
            engine.latency = (await measure(engine, facts)).latency
        yield engine, facts
    finally:
        await engine.close()


def random_prompt(rng: random.Random, tokens: int) -> Tokens:
    """Random tokens, so that no prefix is cached."""
    return tuple(rng.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(tokens))


@dataclass
class Answer:
    """What a client saw of one request."""

    objective: Objective | None
    started_s: float
    token_times_s: list[float] = field(default_factory=list)

    def late(self) -> int:
        """Tokens that came after their deadline, without any tolerance; the first has its own objective."""
        if self.objective is None or not self.token_times_s:
            return 0
        first_s = self.token_times_s[0]
        return sum(
            time_s > self.objective.token_due_s(number, first_s)
            for number, time_s in enumerate(self.token_times_s[1:], start=2)
        )


async def ask(engine: VllmEngine, job: Job, answer: Answer) -> None:
    """Run a job and note when its tokens came."""
    async for output in engine.generate(job):
        answer.token_times_s += [time.time()] * len(output.tokens)


def greedy(tokens: int) -> Sampling:
    return Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)


async def switch(engine: VllmEngine, policy: str) -> None:
    """Change the policy (see :mod:`bench.switching`); returns once it holds."""
    async for _ in engine.generate(Job(SWITCH, (5,), greedy(1), tier=SWITCH + policy)):
        pass
