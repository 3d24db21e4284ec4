"""``python -m bench.workload``: write a workload file of a scenario, or describe one (last line: one JSON object)."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.workloads import SCENARIOS, Arrivals, Item, WorkloadSpec, describe, generate, scale_lengths, write_workload
from bench.workloads.arrivals import Bursts
from bench.workloads.scale import rate_of, scale_rate
from bench.workloads.traces import read_trace
from common.errors import WorkloadError


def add_arrivals(parser: argparse.ArgumentParser) -> None:
    """Options about arrivals, shared by the benchmark commands."""
    bursts = Bursts()
    parser.add_argument("--arrivals", choices=list(Arrivals), default=Arrivals.POISSON, type=Arrivals)
    parser.add_argument(
        "--cv", type=float, default=bursts.cv, help="CV of gaps: within bursts, and over all under phased"
    )
    parser.add_argument("--on-s", type=float, default=bursts.on_s, help="mean length of bursts")
    parser.add_argument("--off-s", type=float, default=bursts.off_s, help="mean time between bursts")
    parser.add_argument("--trace", type=Path, help="take arrivals from this file (Azure CSV, Mooncake or our JSONL)")
    parser.add_argument("--trace-start-s", type=float, default=0.0, help="where in the trace to begin")
    parser.add_argument("--length-scale", type=float, default=1.0, help="all token counts times this")
    parser.add_argument("--tenants", type=int, default=1)


def spec_of(args: argparse.Namespace, scenario: str, rate: float, seconds: float, seed: int) -> WorkloadSpec:
    """What the options ask for."""
    return WorkloadSpec(
        scenario=scenario,
        rate=rate,
        seconds=seconds,
        seed=seed,
        arrivals=args.arrivals,
        bursts=Bursts(args.cv, args.on_s, args.off_s),
        length_scale=args.length_scale,
        tenants=args.tenants,
        trace_file=args.trace,
        trace_start_s=args.trace_start_s,
    )


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.workload", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scenario", choices=list(SCENARIOS))
    what.add_argument("--describe", type=Path, metavar="FILE", help="print statistics of a workload or trace")
    what.add_argument("--convert", type=Path, metavar="FILE", help="write a trace, lengths and all, as a workload")
    parser.add_argument("--rate", type=float, help="requests per second; default 4, or the trace's own")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tier", default="chat", help="tier of the requests of a converted trace")
    parser.add_argument("--out", type=Path, metavar="FILE")
    add_arrivals(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser()
    args = arguments.parse_args(argv)
    try:
        if args.describe is not None:
            print(json.dumps(describe(read_trace(args.describe))))
            return 0
        if args.out is None:
            arguments.error("--out is needed")
        if args.rate is not None and args.rate <= 0:
            arguments.error("--rate must be above 0")
        items = _made(args)
        write_workload(args.out, items)
        print(json.dumps({"out": str(args.out), **describe(items)}))
    except (WorkloadError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _made(args: argparse.Namespace) -> list[Item]:
    if args.scenario is not None:
        return generate(spec_of(args, args.scenario, args.rate or 4.0, args.seconds, args.seed))
    items = scale_lengths(read_trace(args.convert, args.tier), args.length_scale)
    return items if args.rate is None else scale_rate(items, args.rate / rate_of(items))


if __name__ == "__main__":
    sys.exit(main())
