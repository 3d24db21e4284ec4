"""``python -m bench.control_plane``: how many requests and tokens a second the control plane carries.

Api replicas, Redis and the planner are real processes, engines are simulated; they share this machine with the client.
A rate holds if 99 % of decisions come within 10 ms of sending, on each replica, and all requests are answered. Without
``--rate`` the highest is searched. ``--workers`` and ``--api-replicas`` take lists, to see how it grows. The last line
is one JSON object, of the last combination; ``growth`` has all.
"""

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench import ending
from bench.cluster import Cluster, free_port
from bench.control_plane.fleet import STEP_MS, WORKERS
from bench.control_plane.load import Client, Pool, Shape
from bench.control_plane.probe import Probe, highest, judge
from bench.real.cpu import usage
from bench.results import raw
from common.bus.redis import RedisBus
from common.settings import Settings

READY_S = 120.0
SETTLE_S = 0.5
console = Console(stderr=True)


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.control_plane", description=__doc__)
    parser.add_argument("--workers", default="4,16,64", help="simulated workers; a list to see how it grows")
    parser.add_argument("--api-replicas", default="1", help="api processes; may be a list")
    parser.add_argument("--rate", type=float, help="measure this one rate (requests per second)")
    parser.add_argument("--start-rate", type=float, default=100.0, help="where the search begins")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=40)
    parser.add_argument("--step-ms", type=float, default=50.0, help="how long an engine's step takes")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long a rate is measured")
    parser.add_argument("--warm-up-s", type=float, default=3.0)
    parser.add_argument("--log-dir", type=Path, help="keep logs here")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    raw.add_out(parser)
    return parser


class Plane:
    """A control plane of real processes with a fleet of simulated workers; a client measures it."""

    def __init__(self, cluster: Cluster, args: argparse.Namespace, workers: int, replicas: int) -> None:
        self._cluster = cluster
        self._args = args
        self._workers = workers
        ports = [cluster.port, *(free_port() for _ in range(replicas - 1))]
        self._admission = cluster.start("admission")
        self._fleet = cluster.start(
            "bench.control_plane.fleet", **{WORKERS: str(workers), STEP_MS: f"{args.step_ms:g}"}
        )
        self._apis = [cluster.start("api", SLOS_PORT=str(port)) for port in ports]
        self._pools = [Pool(f"http://127.0.0.1:{port}") for port in ports]
        self._client = Client(self._pools, Shape(args.prompt_tokens, args.output_tokens))

    async def ready(self) -> None:
        """Wait until all workers are planned with, by the policy that is asked for, and every replica listens."""
        await self._cluster.ready(READY_S)
        bus = RedisBus.connect(Settings(redis_url=self._cluster.redis.url))
        until_s = time.monotonic() + READY_S
        try:
            while time.monotonic() < until_s:
                known = sum(state is not None and state.known for state in (await bus.workers()).values())
                if known == self._workers and b'"planning"' in self._admission.log.read_bytes():
                    break
                await asyncio.sleep(0.1)
            else:
                raise RuntimeError(f"{known} of {self._workers} workers are planned with after {READY_S:g} s")
        finally:
            await bus.close()
        for pool in self._pools:
            await self._listening(pool, until_s)

    async def _listening(self, pool: Pool, until_s: float) -> None:
        while True:
            try:
                await pool.open(8)
                return
            except OSError:
                if time.monotonic() > until_s:
                    raise
                await asyncio.sleep(0.1)

    async def measure(self, rate: float) -> Probe:
        """Load it with this rate for the measured time after a warm-up."""
        args = self._args
        begin_s = time.time() + args.warm_up_s
        end_s = begin_s + args.seconds
        loaded = asyncio.create_task(self._client.run(rate, args.warm_up_s + args.seconds, drain_s=10.0))
        await asyncio.sleep(args.warm_up_s)
        before = usage(self._pids())
        await asyncio.sleep(max(0.0, end_s - time.time()))
        used = usage(self._pids()).since(before)
        answers = await loaded
        probe = judge(answers, rate, begin_s, end_s, used.outside_s, len(self._pools))
        console.print(_line(probe))
        await asyncio.sleep(SETTLE_S)
        return probe

    def _pids(self) -> dict[str, int]:
        named = {"admission": self._admission, "workers": self._fleet}
        apis = {f"api-{number}": child for number, child in enumerate(self._apis, start=1)}
        redis = self._cluster.redis.pid
        assert redis is not None
        return {name: child.process.pid for name, child in (named | apis).items()} | {
            "redis": redis,
            "client": os.getpid(),
        }

    def close(self) -> None:
        """Close connections."""
        for pool in self._pools:
            pool.close()


async def one(args: argparse.Namespace, workers: int, replicas: int) -> dict[str, Any]:
    """A combination of workers and replicas."""
    console.print(f"[bold]{workers} workers, {replicas} api replicas[/]")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.log_dir or Path(temporary)) / f"workers{workers}-api{replicas}"
        with Cluster(folder, environment(args)) as cluster:
            plane = Plane(cluster, args, workers, replicas)
            await plane.ready()
            if args.rate:
                probes = [await plane.measure(args.rate)]
                best = probes[0]
            else:
                best, probes = await highest(plane.measure, args.start_rate)
            plane.close()
    return summary(best, probes, workers, replicas)


async def grow(args: argparse.Namespace, workers: Sequence[int], replicas: Sequence[int]) -> list[dict[str, Any]]:
    """All combinations, one after the other."""
    return [await one(args, n, k) for k, n in itertools.product(replicas, workers)]


def environment(args: argparse.Namespace) -> Mapping[str, str]:
    """Settings of all processes: engines that take whatever comes, and no promise held back on purpose."""
    return {
        "SLOS_ENGINE": "simulated",
        "SLOS_MAX_NUM_SEQS": "1024",
        "SLOS_MAX_NUM_BATCHED_TOKENS": "16384",
        "SLOS_KV_CACHE_GIB": "64",
        "SLOS_TPOT_SCALE": f"{max(1.0, args.step_ms / 10):g}",
        "SLOS_HOLD_MS": "0",
        "SLOS_LOG_LEVEL": "info",
    }


def summary(best: Probe, probes: Sequence[Probe], workers: int, replicas: int) -> dict[str, Any]:
    """The JSON object of a combination."""
    return {
        "workers": workers,
        "api_replicas": replicas,
        "requests_per_s": round(best.requests_per_s, 1),
        "tokens_per_s": round(best.tokens_per_s, 1),
        "requests_per_s_per_replica": round(best.requests_per_s / replicas, 1),
        "admission_delay_ms_p50": best.as_json()["delay_ms_p50"],
        "admission_delay_ms_p99": best.as_json()["delay_ms_p99"],
        "relay_ms_p99": best.as_json()["relay_ms_p99"],
        "holds": best.holds,
        "cpu_ms_per_request": best.cpu_ms_per_request(),
        "cpu_cores": dict(best.cpu),
        "probes": [probe.as_json() for probe in probes],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser()
    args = arguments.parse_args(argv)
    try:
        workers, replicas = ([int(part) for part in text.split(",")] for text in (args.workers, args.api_replicas))
    except ValueError:
        arguments.error("--workers and --api-replicas are numbers, separated by commas")
    if min(*workers, *replicas) < 1 or (args.rate is not None and args.rate <= 0):
        arguments.error("workers, replicas and the rate must be above 0")
    console.quiet = args.json
    growth = ending.run(grow(args, workers, replicas), uvloop.new_event_loop)
    result = growth[-1] | {"growth": [{name: row[name] for name in GROWTH} | _cpu(row) for row in growth]}
    raw.keep(args.out, "bench.control_plane", argv, result)
    if not args.json:
        Console().print(table(growth))
    print(json.dumps(result))
    return 0


GROWTH = ("workers", "api_replicas", "requests_per_s", "tokens_per_s", "admission_delay_ms_p99", "relay_ms_p99")


def _cpu(row: Mapping[str, Any]) -> dict[str, float]:
    """CPU time of a request: of the control plane, and of what only the benchmark needs."""
    of = row["cpu_ms_per_request"]
    own = sum(used for name, used in of.items() if name not in ("workers", "client"))
    shown = {f"{name}_cpu_ms": used for name, used in of.items()}
    return {"control_plane_cpu_ms": round(own, 4)} | shown


def table(growth: Sequence[Mapping[str, Any]]) -> Table:
    """What a reader wants to see first."""
    shown = Table("workers", "api", "req/s", "tokens/s", "delay p50 ms", "p99 ms", "relay p99 ms", "CPU ms/request")
    for row in growth:
        cpu = ", ".join(f"{name} {used:.2f}" for name, used in row["cpu_ms_per_request"].items())
        values = (row[name] for name in ("workers", "api_replicas", "requests_per_s", "tokens_per_s"))
        delays = (row[name] for name in ("admission_delay_ms_p50", "admission_delay_ms_p99", "relay_ms_p99"))
        shown.add_row(*map(str, (*values, *delays)), cpu)
    return shown


def _line(probe: Probe) -> str:
    cpu = " ".join(f"{name} {used:.2f}" for name, used in probe.cpu.items())
    return (
        f"{probe.rate:7.1f}/s: {'holds' if probe.holds else 'fails'}, {probe.requests_per_s:.1f} requests/s, "
        f"{probe.tokens_per_s:.0f} tokens/s, delay p50 {probe.delay_ms_p50:.1f} p99 {probe.delay_ms_p99:.1f} ms, "
        f"relay p99 {probe.relay_ms_p99:.1f} ms, late {probe.late_ms_p99:.1f} ms, {probe.ended:.1%} answered; "
        f"cores: {cpu}{'; ' + '; '.join(probe.errors) if probe.errors else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
