"""``python -m bench.capacity``: the highest rate at which each system still attains 90 % of all SLOs.

``--mode sim`` simulates named GPUs; ``--mode real`` runs the product and stock vLLM servers on this machine. Each
seed's capacity is found by bisection to 5 %; a rate holds if attainment over all requests is high enough and no backlog
grows. What a baseline has to be tuned by hand is tuned first, on another seed. Capacities are requests per second and
engine. The last line is one JSON object; progress goes to stderr.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.case import WORKLOAD, Case, Mode
from bench.results import raw
from bench.results.capture import capture
from bench.search import Estimate, geometric
from bench.simulator.mode import SimMode
from bench.study import Found, Study
from bench.workload import add_arrivals, spec_of
from bench.workloads import SCENARIOS
from common.errors import SlosError
from common.presets import PRESETS

SYSTEMS = {
    "sim": ("ours", "vllm", "vllm-spec", "vllm-prefill-first", "sarathi", "disagg", "slos-serve", "edf", "bound"),
    "real": ("ours", "vllm", "vllm-tuned", "disagg"),
}
DEFAULTS: Mapping[str, Mapping[str, float | int]] = {
    "sim": {"workers": 4, "seeds": 3, "seconds": 300.0, "length_scale": 1.0, "tune_seconds": 120.0, "precision": 0.05},
    "real": {"workers": 2, "seeds": 2, "seconds": 30.0, "length_scale": 0.25, "tune_seconds": 120.0, "precision": 0.05},
}


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description=__doc__)
    parser.add_argument("--mode", choices=list(SYSTEMS), default="sim")
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="mixed")
    parser.add_argument("--workload", type=Path, metavar="FILE", help="scale this file's times instead of a scenario")
    parser.add_argument("--systems", default="ours,vllm", help=_known())
    parser.add_argument("--preset", choices=list(PRESETS), default="opt-13b-tp2-a100")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--seeds", type=int, help="how many seeds")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, help="how long requests arrive for")
    parser.add_argument("--rate", type=float, help="evaluate this one rate (requests per second in all)")
    parser.add_argument("--attainment", type=float, default=0.9, help="share of SLOs that capacity asks for")
    parser.add_argument("--tpot-scale", type=float, default=1.0, help="stretches every tier's TPOT")
    parser.add_argument("--tune-seconds", type=float, help="length of the runs that tuning is done on")
    parser.add_argument("--precision", type=float, help="how far apart a rate that holds and one that does not may be")
    parser.add_argument("--jobs", type=int, default=1, help="simulations at a time")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the raw results that figures are made from")
    parser.add_argument("--curve", type=int, default=0, help="so many rates at which --out has all systems' attainment")
    add_arrivals(parser)
    parser.set_defaults(length_scale=None)
    real = parser.add_argument_group("real runs")
    real.add_argument("--log-dir", type=Path, metavar="DIR", help="keep a log of every request and process here")
    real.add_argument("--parameters", default="50M", help="size of the random model")
    real.add_argument("--chunk", type=int, help="vllm-tuned's max_num_batched_tokens; default: the best of a sweep")
    real.add_argument(
        "--recalibrate", action="store_true", help="measure this machine's zero-load times and steps anew"
    )
    return parser


def _known() -> str:
    return "comma-separated, of " + "; ".join(f"{mode}: {', '.join(names)}" for mode, names in SYSTEMS.items())


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options with the mode's defaults, and the systems; exits with what is wrong."""
    arguments = parser()
    args = arguments.parse_args(argv)
    for name, value in DEFAULTS[args.mode].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    systems = list(dict.fromkeys(name.strip() for name in args.systems.split(",") if name.strip()))
    if unknown := set(systems) - set(SYSTEMS[args.mode]):
        arguments.error(f"unknown systems {sorted(unknown)}; known are {', '.join(SYSTEMS[args.mode])}")
    if not systems or args.workers < 1 or args.seeds < 1 or (args.rate is not None and args.rate <= 0):
        arguments.error("systems, workers, seeds and the rate must be at least one of something")
    return args, systems


def mode_of(args: argparse.Namespace) -> Mode:
    """The mode that is asked for."""
    if args.mode == "sim":
        return SimMode()
    from bench.real.mode import RealMode, RealOptions

    return RealMode(
        RealOptions(
            parameters=args.parameters,
            log_dir=args.log_dir,
            stop_below=None if args.rate else args.attainment,
            chunk=args.chunk,
            tune_s=args.tune_seconds,
            recalibrate=args.recalibrate,
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args, systems = parse(argv)
    try:
        with closing(mode_of(args)) as mode:
            found = Study(mode, args.attainment, args.tune_seconds, args.jobs, args.precision).run(
                cases(args, systems), range(args.first_seed, args.first_seed + args.seeds), args.rate
            )
            result = summary(args, found) | mode.described()
            if args.out is not None:
                raw.write(args.out, _raw(args, mode, found, result, argv))
    except (SlosError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if not args.json:
        Console().print(table(result))
    print(json.dumps(result))
    return 0


def _raw(
    args: argparse.Namespace, mode: Mode, found: Sequence[Found], result: dict[str, Any], argv: Sequence[str] | None
) -> dict[str, Any]:
    scenarios = {name: {system: dict(one) for system, one in of.items()} for name, of in result["scenarios"].items()}
    for one in found:
        scenarios[one.case.spec.scenario][one.case.system]["points"] = one.points(one.case.workers)
    for scenario, system, added in capture(mode, found, args.curve) if args.rate is None else ():
        scenarios[scenario][system] |= added
    settings = {
        name: Path(value).name if str(value).startswith("/") else value for name, value in result["settings"].items()
    }
    about = raw.provenance("bench.capacity", sys.argv[1:] if argv is None else argv)
    return raw.joined(about, result) | {"scenarios": scenarios, "settings": settings}


def cases(args: argparse.Namespace, systems: Sequence[str]) -> list[Case]:
    """One for each scenario and system; the rate is the mode's guess."""
    scenarios = [WORKLOAD] if args.workload else list(SCENARIOS) if args.scenario == "all" else [args.scenario]
    return [
        Case(
            system=system,
            spec=spec_of(args, scenario, args.rate or 1.0, args.seconds, args.first_seed),
            preset=args.preset if args.mode == "sim" else "",
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
