"""Stock vLLM's best ``max_num_batched_tokens``: two at a time, each on a server of its own with half the load."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench.real.backends import Backend, Stock
from bench.real.load import Load, play, probe
from bench.real.routing import RoundRobin
from bench.real.servers import ServerOptions, start_all, stop_all
from bench.real.systems import MAX_SEQS
from bench.saying import say

CHUNKS = (64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Tried:
    """A budget, and the share of requests that met their SLO under it, as a mean over loads."""

    chunk: int
    met: float


async def best_chunk(model: str, loads: Sequence[Load], chunks: Sequence[int], folder: Path) -> int:
    """The budget under which the largest share of a load meets its SLO on one server; the larger of equals."""
    tried: list[Tried] = []
    middle = len(chunks) // 2
    for pair in zip(chunks[:middle], chunks[middle:], strict=True):
        tried += await _pair(model, loads, pair, folder)
    say("chunk sweep: " + ", ".join(f"{one.chunk}: {one.met:.3f}" for one in sorted(tried, key=lambda one: one.chunk)))
    return best(tried)


def best(tried: Sequence[Tried]) -> int:
    """See :func:`best_chunk`."""
    return max(tried, key=lambda one: (one.met, one.chunk)).chunk


async def _pair(model: str, loads: Sequence[Load], chunks: Sequence[int], folder: Path) -> list[Tried]:
    servers = await start_all([ServerOptions(model, chunk, MAX_SEQS) for chunk in chunks], folder)
    try:
        backends = [Stock(RoundRobin([server.url]), model, [server.url]) for server in servers]
        shares = await asyncio.gather(*(met(loads, backend) for backend in backends))
    finally:
        stop_all(servers)
    return [Tried(chunk, met) for chunk, met in zip(chunks, shares, strict=True)]


async def met(loads: Sequence[Load], backend: Backend) -> float:
    """Share of requests that met their SLO; each load counts alike, however many requests it has."""
    shares = []
    for load in loads:
        await probe(backend)
        sent = await play(load, backend)
        shares.append(sum(one.outcome(backend.promises).met() for one in sent) / max(1, len(sent)))
    return fmean(shares)
