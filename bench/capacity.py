"""``python -m bench.capacity``: the highest rate at which each system still attains 90 % of all SLOs.

Each seed's capacity is found by bisection to 5 %; a rate holds if attainment over all requests is high enough and no
backlog grows. What a baseline has to be tuned by hand is tuned first, on another seed. Capacities are requests per
second and engine. The last line is one JSON object; progress goes to stderr.
"""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from bench.case import WORKLOAD, Case, Mode
from bench.presets import PRESETS
from bench.search import Estimate, geometric
from bench.study import Found, Study
from bench.workload import add_arrivals, spec_of
from bench.workloads import SCENARIOS
from common.errors import SlosError

SYSTEMS = (
    "ours", "vllm", "vllm-spec", "vllm-prefill-first", "sarathi", "disagg", "slos-serve", "edf", "bound",
)  # fmt: skip
MODES = {"sim": "bench.simulator.mode:SimMode", "real": "bench.real.mode:RealMode"}


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--mode", choices=list(MODES), default="sim")
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="mixed")
    parser.add_argument("--workload", type=Path, metavar="FILE", help="scale this file's times instead of a scenario")
    parser.add_argument("--systems", default="ours,vllm", help=f"comma-separated, of {', '.join(SYSTEMS)}")
    parser.add_argument("--preset", choices=list(PRESETS), default="opt-13b-tp2-a100")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long requests arrive for")
    parser.add_argument("--rate", type=float, help="evaluate this one rate (requests per second in all)")
    parser.add_argument("--attainment", type=float, default=0.9, help="share of SLOs that capacity asks for")
    parser.add_argument("--tpot-scale", type=float, default=1.0, help="stretches every tier's TPOT")
    parser.add_argument("--tune-seconds", type=float, default=120.0, help="length of the runs that tuning is done on")
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON object to this file as well")
    add_arrivals(parser)
    return parser


def mode_of(name: str) -> Mode:
    """The mode by its name; raises SystemExit where it is not installed."""
    module, attribute = MODES[name].split(":")
    try:
        return cast(Mode, getattr(importlib.import_module(module), attribute)())
    except ModuleNotFoundError as error:
        raise SystemExit(f"--mode {name} is not available: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser()
    args = arguments.parse_args(argv)
    systems = list(dict.fromkeys(name.strip() for name in args.systems.split(",") if name.strip()))
    if unknown := set(systems) - set(SYSTEMS):
        arguments.error(f"unknown systems {sorted(unknown)}; known are {', '.join(SYSTEMS)}")
    if not systems or args.workers < 1 or args.seeds < 1 or (args.rate is not None and args.rate <= 0):
        arguments.error("systems, workers, seeds and the rate must be at least one of something")
    try:
        found = Study(mode_of(args.mode), args.attainment, args.tune_seconds, args.jobs).run(
            cases(args, systems), range(args.first_seed, args.first_seed + args.seeds), args.rate
        )
    except (SlosError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    result = summary(args, found)
    if not args.json:
        Console().print(table(result))
    text = json.dumps(result)
    if args.out is not None:
        args.out.write_text(text + "\n")
    print(text)
    return 0


def cases(args: argparse.Namespace, systems: Sequence[str]) -> list[Case]:
    """One for each scenario and system; the rate is the mode's guess."""
    scenarios = [WORKLOAD] if args.workload else list(SCENARIOS) if args.scenario == "all" else [args.scenario]
    return [
        Case(
            system=system,
            spec=spec_of(args, scenario, args.rate or 1.0, args.seconds, args.first_seed),
            preset=args.preset,
            workers=args.workers,
            tpot_scale=args.tpot_scale,
            workload=args.workload,
        )
        for scenario in scenarios
        for system in systems
    ]


def summary(args: argparse.Namespace, found: Sequence[Found]) -> dict[str, Any]:
    """The JSON object."""
    scenarios: dict[str, dict[str, Any]] = {}
    per_engine: dict[str, list[float]] = {}
    for one in found:
        scenarios.setdefault(one.case.spec.scenario, {})[one.case.system] = one.as_json(args.workers)
        per_engine.setdefault(one.case.system, []).extend(rate / args.workers for rate in one.rates)
    estimates = {system: geometric(rates) for system, rates in per_engine.items()}
    capacity = {system: estimate.mean for system, estimate in estimates.items()}
    described = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    result: dict[str, Any] = {"scenarios": scenarios, "settings": described}
    if args.rate is not None:
        return {"rate": args.rate} | result
    ours = capacity.get("ours")
    return {
        "capacity": capacity,
        "ratio": {name: ours / rate for name, rate in capacity.items() if ours and rate and name != "ours"},
        "ci": {name: _interval(estimate) for name, estimate in estimates.items()},
        "per": "requests per second and engine",
    } | result


def _interval(estimate: Estimate) -> list[float | None]:
    return [bound if math.isfinite(bound) else None for bound in (estimate.low, estimate.high)]


def table(result: dict[str, Any]) -> Table:
    """What a reader wants to see first."""
    shown = Table("scenario", "system", "req/s/engine", "attained", "strict", "deferred", "TTFT p99 s", "tuning")
    for scenario, systems in result["scenarios"].items():
        for system, found in systems.items():
            report = found["report"]
            shown.add_row(
                scenario,
                system,
                f"{found['capacity']:.2f}",
                f"{report['attainment']:.3f}",
                f"{report['attainment_strict']:.3f}",
                f"{report['deferred'] + report['rejected']:.3f}",
                "never" if report["ttft_s"][2] is None else f"{report['ttft_s'][2]:.2f}",
                found["tuning"],
            )
    return shown


if __name__ == "__main__":
    sys.exit(main())
