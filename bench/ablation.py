"""``python -m bench.ablation``: what each ingredient of ``ours`` is worth, each switched off by itself.

Simulated capacities as :mod:`bench.capacity` finds them; ``worth`` is the share of capacity that is lost without the
ingredient. ``--mode real`` climbs from stock servers to the product on two real engines of this machine, one ingredient
at a time: attainment by step at ``--rate``, or capacity. The last line is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from admission.options import PlannerOptions
from bench.case import Case
from bench.results import raw
from bench.search import geometric
from bench.simulator.mode import SimMode, SimOptions
from bench.simulator.systems import Ingredients, Tuning
from bench.study import Found, Study
from bench.workload import add_arrivals, spec_of
from bench.workloads import SCENARIOS
from common.errors import SlosError
from common.presets import PRESETS

Change = Callable[[Ingredients], Ingredients]


def _planner(**changes: Any) -> Change:
    return lambda parts: replace(parts, planner=replace(parts.planner, **changes))


def _no_best_effort_share(parts: Ingredients) -> Ingredients:
    return replace(
        parts, planner=replace(parts.planner, best_effort_share=0.0), former=replace(parts.former, share=0.0)
    )


WHOLE = "whole"
VARIANTS: Mapping[str, Change] = {
    WHOLE: lambda parts: parts,
    "central hold": _planner(central_hold=False),
    "DP": _planner(select="greedy"),
    "late binding": _planner(late_binding=False),
    "decode packing": _planner(decode_packing=False),
    "elastic placement": _planner(elastic=False),
    "speculation": lambda parts: replace(parts, most_drafts=0),
    "speculation rule": lambda parts: replace(parts, always_draft=True),
    "slack batching": lambda parts: replace(parts, slack_batching=False),
    "deferral": _planner(deferral=False),
    "best-effort share": _no_best_effort_share,
    "memory model": _planner(memory="reserve"),
}
"""What is switched off, by name. Without slack batching engines run stock batches of ``--budget`` tokens."""


def parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__)
    parser.add_argument("--mode", choices=("sim", "real"), default="sim")
    parser.add_argument("--rate", type=float, help="real: attainment at this rate instead of capacity")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="real: keep a log of every request here")
    parser.add_argument("--scenarios", default="mixed", help=f"comma-separated, or all: {', '.join(SCENARIOS)}")
    parser.add_argument("--variants", default="all", help="comma-separated, or all")
    parser.add_argument("--preset", choices=list(PRESETS), default="opt-13b-tp2-a100")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--prefill-workers", type=int, default=0, help="workers that prefer prompts; 0: all alike")
    parser.add_argument("--budget", type=int, default=1024, help="tokens of a stock batch")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--attainment", type=float, default=0.9)
    parser.add_argument("--tpot-scale", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    add_arrivals(parser)
    raw.add_out(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.mode == "real":
        return climb(args, arguments, argv)
    scenarios = list(SCENARIOS) if args.scenarios == "all" else args.scenarios.split(",")
    variants = list(VARIANTS) if args.variants == "all" else list(dict.fromkeys([WHOLE, *args.variants.split(",")]))
    if unknown := (set(scenarios) - set(SCENARIOS)) | (set(variants) - set(VARIANTS)):
        arguments.error(f"unknown: {', '.join(sorted(unknown))}")
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    study = Study(_Fixed(), args.attainment, jobs=args.jobs)
    named = [(scenario, variant, case(args, scenario, variant)) for scenario in scenarios for variant in variants]
    try:
        found = study.run([one for _, _, one in named], seeds)
    except (SlosError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    rates: dict[str, dict[str, Sequence[float]]] = {}
    for (scenario, variant, _), one in zip(named, found, strict=True):
        rates.setdefault(scenario, {})[variant] = [rate / args.workers for rate in one.rates]
    result = {"capacity": _capacities(rates), "worth": worth(rates), "settings": raw.settings(args)}
    raw.keep(args.out, "bench.ablation", argv, result)
    if not args.json:
        Console().print(_table(result["worth"]))
    print(json.dumps(result))
    return 0


def climb(args: argparse.Namespace, arguments: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """The real ladder; one scenario, two engines, lengths at a quarter and runs of 30 s unless given."""
    from bench.real.ablation import LADDER, cases
    from bench.real.mode import RealMode, RealOptions

    steps = list(LADDER) if args.variants == "all" else args.variants.split(",")
    if args.scenarios not in SCENARIOS or set(steps) - set(LADDER):
        arguments.error(f"one of {', '.join(SCENARIOS)}, and of {', '.join(LADDER)}")
    given = set(vars(args)) - {name for name, value in vars(args).items() if value == arguments.get_default(name)}
    args.seconds = args.seconds if "seconds" in given else 30.0
    args.length_scale = args.length_scale if "length_scale" in given else 0.25
    spec = spec_of(args, args.scenarios, args.rate or 1.0, args.seconds, args.first_seed)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    options = RealOptions(log_dir=args.log_dir, stop_below=None if args.rate else args.attainment)
    try:
        with closing(RealMode(options)) as mode:
            wanted = cases(mode, Case("ours", spec, "", 2, args.tpot_scale), steps)
            found = Study(mode, args.attainment).run(wanted, seeds, args.rate)
            result = {"steps": {one.case.system: step(one, args.rate) for one in found}, **mode.described()}
            result |= {"rate": args.rate, "settings": raw.settings(args)}
    except (SlosError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    raw.keep(args.out, "bench.ablation", argv, result)
    print(json.dumps(result))
    return 0


def step(found: Found, rate: float | None) -> dict[str, Any]:
    """Shares of all seeds' requests at the rate, ``met`` of those without a promise too; or the step's capacity."""
    if rate is None:
        return found.as_json(2)
    requests = [one.requests for one in found.reports]
    return {
        "requests": sum(requests),
        "attained": fmean([one.attainment for one in found.reports], requests),
        "attained_strict": fmean([one.attainment_strict for one in found.reports], requests),
        "met": fmean([one.met for one in found.reports], requests),
        "by_seed": [round(one.attainment, 5) for one in found.reports],
    }


class _Fixed(SimMode):
    """Nothing is tuned here: a case has its options already."""

    def tunings(self, case: Case) -> list[SimOptions]:
        return [case.options]


def case(args: argparse.Namespace, scenario: str, variant: str) -> Case:
    """``ours`` without one ingredient."""
    options = SimOptions(
        tuning=Tuning(args.budget), ingredients=VARIANTS[variant](Ingredients(planner=PlannerOptions()))
    )
    options = replace(options, settings=replace(options.settings, prefill_workers=args.prefill_workers))
    spec = spec_of(args, scenario, 1.0, args.seconds, args.first_seed)
    return Case("ours", spec, args.preset, args.workers, args.tpot_scale, options=options)


def worth(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    """By variant and scenario (``all``: geometric mean), the share of the whole's capacity that is lost."""
    found: dict[str, dict[str, float]] = {}
    for variant in next(iter(rates.values())):
        if variant == WHOLE:
            continue
        ratios = {
            name: geometric(by[variant]).mean / max(1e-9, geometric(by[WHOLE]).mean) for name, by in rates.items()
        }
        found[variant] = {name: 1 - ratio for name, ratio in ratios.items()}
        found[variant]["all"] = 1 - geometric(list(ratios.values())).mean
    return found


def _capacities(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    return {
        scenario: {variant: geometric(values).mean for variant, values in by.items()} for scenario, by in rates.items()
    }


def _table(found: Mapping[str, Mapping[str, float]]) -> Table:
    scenarios = list(next(iter(found.values()), {}))
    table = Table("without", *scenarios)
    for variant, by in found.items():
        table.add_row(variant, *(f"{-100 * by[scenario]:+.1f} %" for scenario in scenarios))
    return table


if __name__ == "__main__":
    sys.exit(main())
