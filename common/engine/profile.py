"""Measures an engine's latency model on this machine and keeps it in a file, by engine and machine.

``python -m common.engine.profile`` measures the configured engine; a worker does the same at its first start.
"""

import argparse
import asyncio
import fcntl
import json
import logging
import os
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from common.engine.factory import make_engine
from common.engine.interface import Engine, Facts, Job
from common.engine.least_squares import fit_grid
from common.errors import ProfileError
from common.latency_model import Batch, LatencyModel, Piece
from common.messages import Sampling, StepSample
from common.settings import Settings, load_settings

FORMAT = 2
SEED = 0
DECODED_TOKENS = 12
ROUNDS = 3
MAX_FILE_BYTES = 1 << 20
MISFIT = 2.0
"""Measured over predicted seconds from which a profile is taken to be another machine's."""

_PREFILLS = ((1, 16), (1, 64), (1, 256), (1, 1024), (1, 3500), (4, 256), (16, 64))
_DECODES = ((1, 32), (1, 1536), (4, 512), (8, 1024), (16, 128), (32, 64), (64, 32))
_PROBES = ((1, 256, DECODED_TOKENS), (4, 64, DECODED_TOKENS))
_DRAFTS = (1, 2, 3, 4, 6, 8, 10)
_DRAFTED = ((1, 32), (4, 512), (16, 128), (32, 64))
_LOCK_POLL_S = 0.1

Tick = Callable[[float], None]
"""Told the share done so far, 0 to 1."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    """A latency model, and how well it explains the steps that it was fitted to.

    ``r2`` is the share of variance explained, ``mape`` the mean absolute relative error.
    """

    latency: LatencyModel
    r2: float
    mape: float
    samples: int


@dataclass(frozen=True, slots=True)
class _Round:
    """So many prompts of one length at once, each followed by ``output`` tokens, ``drafts`` at a time and one."""

    seqs: int
    prompt: int
    output: int
    drafts: int = 0


async def measure(engine: Engine, facts: Facts, tick: Tick = lambda _: None) -> Measured:
    """Run a grid of batches through a started, idle engine and fit the model to its step times."""
    rounds = _grid(facts)
    generator = random.Random(SEED)  # noqa: S311 - seeded prompts, nothing secret
    await _run(engine, facts, _Round(1, min(64, facts.max_model_len // 2), 4), generator)
    engine.take_samples()
    samples: list[StepSample] = []
    for number, step in enumerate(rounds, start=1):
        await _run(engine, facts, step, generator)
        samples += engine.take_samples()
        tick(number / len(rounds))
    typical = _typical(samples)
    return evaluate(fit_grid(typical), typical)


def evaluate(latency: LatencyModel, samples: Sequence[StepSample]) -> Measured:
    """How well a model explains samples; raises ProfileError without any."""
    if not samples:
        raise ProfileError("the engine reported no steps")
    seconds = np.array([sample.seconds for sample in samples])
    predicted = np.array([latency.seconds(_batch(sample)) for sample in samples])
    spread = float(((seconds - seconds.mean()) ** 2).sum())
    r2 = 1 - float(((seconds - predicted) ** 2).sum()) / spread if spread else 1.0
    return Measured(latency, r2, float(np.abs(predicted / seconds - 1).mean()), len(samples))


async def obtain(engine: Engine, settings: Settings, facts: Facts, tick: Tick = lambda _: None) -> LatencyModel:
    """The cached profile of this engine on this machine, measured and cached first if there is none that fits.

    A cached one is tried on a few batches: a machine that was resized or moved may keep its name. Where measuring
    gives no valid model, it is the engine's present one and nothing is cached.
    Workers of one host measure one after the other, so that the first measures alone and the others find its file.
    """
    async with _locked(settings.profile_dir):
        known = profile_path(settings, facts).exists()
        try:
            latency = load_profile(settings, facts)
            await check_fit(engine, facts, latency)
            return latency
        except ProfileError as error:
            log.log(logging.WARNING if known else logging.INFO, "measuring the engine: %s", error)
        try:
            measured = await measure(engine, facts, tick)
        except ProfileError as error:
            log.warning("the engine can't be measured now, its default latency model is used: %s", error)
            return engine.latency
        save(settings, facts, measured)
    return measured.latency


async def check_fit(engine: Engine, facts: Facts, latency: LatencyModel) -> None:
    """Raise ProfileError if a few batches on the idle engine take much longer or shorter than the model says."""
    generator = random.Random(SEED)  # noqa: S311 - seeded prompts, nothing secret
    samples = []
    for step in (_Round(1, 8, 2), *_fitting([_Round(*probe) for probe in _PROBES], facts)):
        await _run(engine, facts, step, generator)
        samples += engine.take_samples()
    factor = median(sample.seconds / latency.seconds(_batch(sample)) for sample in samples[2:] or samples)
    if not 1 / MISFIT <= factor <= MISFIT:
        raise ProfileError(f"the profile does not fit this machine, where steps take {factor:.2f} times as long")


def profile_path(settings: Settings, facts: Facts) -> Path:
    """Where the profile of this engine on machines of this kind is kept."""
    limits = f"{facts.max_seqs}x{facts.max_batch_tokens}"
    name = f"{facts.model}-{facts.fingerprint}-{limits}-{facts.machine}"
    return settings.profile_dir / f"{file_stem(name)}.json"


def file_stem(name: str) -> str:
    """A name of letters that every file system takes; none that hides a file."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[-200:].lstrip("._-")


def save(settings: Settings, facts: Facts, measured: Measured) -> Path:
    """Write a profile in one step, so that a reader never sees half of it."""
    path = profile_path(settings, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "fingerprint": facts.fingerprint,
        "machine": facts.machine,
        "measured_s": time.time(),
        **asdict(measured),
    }
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(content, indent=2))
    draft.replace(path)
    return path


def load_profile(settings: Settings, facts: Facts) -> LatencyModel:
    """The cached profile; raises ProfileError if it is missing, malformed, or another engine's or machine's."""
    path = profile_path(settings, facts)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ProfileError(f"{path} is too large for a profile")
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProfileError(f"no profile: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ProfileError(f"{path} is not a profile of format {FORMAT}")
    if (content.get("fingerprint"), content.get("machine")) != (facts.fingerprint, facts.machine):
        raise ProfileError(f"{path} was measured on another engine or machine")
    try:
        return _latency(content["latency"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} is malformed: {type(error).__name__}") from error


def main() -> None:
    """Measure the configured engine; the last line printed is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m common.engine.profile",
        description="Measure how long this machine's engine takes for a batch, and keep it where workers find it. "
        "Settings come from SLOS_* variables. The last line printed is one JSON object.",
    )
    parser.add_argument("--model", help="Hugging Face name or folder of the model, in place of SLOS_MODEL")
    arguments = parser.parse_args()
    settings = load_settings()
    if arguments.model:
        settings = settings.model_copy(update={"model": arguments.model})
    print(json.dumps(asyncio.run(_command(settings))))


async def _command(settings: Settings) -> Mapping[str, Any]:
    engine = make_engine(settings)
    started_s = time.monotonic()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("starting the engine", total=1)
        facts = await engine.start()
        progress.update(task, description="measuring")
        try:
            measured = await measure(engine, facts, lambda share: progress.update(task, completed=share))
        finally:
            await engine.close()
    path = save(settings, facts, measured)
    numbers = asdict(measured)
    return {"model": facts.model, **numbers.pop("latency"), **numbers, "path": str(path)} | {
        "seconds": round(time.monotonic() - started_s, 2)
    }


def _grid(facts: Facts) -> list[_Round]:
    """Prefills and decodes that fit the engine, several times over and in an order that mixes slow drifts."""
    plan = [_Round(seqs, prompt, 1) for seqs, prompt in _PREFILLS]
    plan += [_Round(seqs, prompt, DECODED_TOKENS) for seqs, prompt in _DECODES]
    drafts = [count for count in _DRAFTS if count <= facts.max_drafts]
    plan += [_Round(seqs, prompt, DECODED_TOKENS, count) for count in drafts for seqs, prompt in _DRAFTED]
    return _fitting(plan, facts) * ROUNDS


def _fitting(plan: Sequence[_Round], facts: Facts) -> list[_Round]:
    room = int(facts.total_blocks * 0.9) * facts.block_size
    return [
        step
        for step in plan
        if step.seqs <= facts.max_seqs
        and step.prompt + step.output < facts.max_model_len
        and step.seqs * (step.prompt + step.output + facts.block_size) <= room
    ]


async def _run(engine: Engine, facts: Facts, step: _Round, generator: random.Random) -> None:
    """Run the round's jobs at once; prompts are random, so that no prefix is cached."""
    sampling = Sampling(max_tokens=step.output, temperature=0, ignore_eos=True)

    async def one(number: int) -> None:
        prompt = tuple(generator.randrange(facts.vocab_size) for _ in range(step.prompt))
        async for _ in engine.generate(Job(f"profile-{number}", prompt, sampling, drafts=step.drafts)):
            pass

    await asyncio.gather(*(one(number) for number in range(step.seqs)))


def _typical(samples: Sequence[StepSample]) -> list[StepSample]:
    """One sample for each distinct batch with its median duration: other processes disturb single steps."""
    alike: dict[Batch, list[StepSample]] = {}
    for sample in samples:
        alike.setdefault(_batch(sample), []).append(sample)
    return [replace(group[0], seconds=median(one.seconds for one in group)) for group in alike.values()]


def _batch(sample: StepSample) -> Batch:
    return Batch(sample.tokens, sample.seqs, sample.kv_tokens, sample.attended, sample.draft_steps)


def _latency(content: Mapping[str, Any]) -> LatencyModel:
    pieces = tuple(
        Piece(float(piece["k_token"]), float(piece["k_draft"]), float(piece["base"])) for piece in content["pieces"]
    )
    return LatencyModel(pieces, float(content["k_seq"]), float(content["k_kv"]), float(content["k_attn"]))


@asynccontextmanager
async def _locked(folder: Path) -> AsyncIterator[None]:
    """Held by one process of the host at a time; a holder that dies lets go."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL_S)
        yield


if __name__ == "__main__":
    main()
