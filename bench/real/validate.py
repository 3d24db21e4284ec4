"""``python -m bench.real.validate``: the simulator against the real engines, on the same workload file.

Each system runs for real, then in the simulator under the same SLOs, with the latency model that the product's workers
have learned in its run (without one, with what was measured of an idle engine). The last line is one JSON object with
both reports' figures and their differences.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import Case
from bench.metrics import Report, report
from bench.outcome import Outcome
from bench.real.calibration import Objectives
from bench.real.mode import RealMode, RealOptions
from bench.results import raw
from bench.simulator.settings import SimulationSettings
from bench.simulator.simulation import Simulation
from bench.simulator.systems import SYSTEMS, Context, Tuning
from bench.workload import add_arrivals, spec_of
from bench.workloads import SCENARIOS, Item
from bench.workloads.scale import rate_of
from common.engine.profile import file_stem
from common.errors import ProfileError, SlosError
from common.latency_model import LatencyModel, Piece
from common.presets import Preset
from common.settings import Settings

KV_BYTES_PER_TOKEN = 8 * 1024
"""Two KV heads of 64 values of 4 bytes, keys and values, in eight layers."""
CPU_LINK = 2e9
PULL_S = 0.012
HOP_S = 0.008
"""Link, set-up of a pull and hop are assumed; only the latency model is measured. ``--hop-ms`` replaces the hop."""
NOISE = 0.25
"""Of log(seconds / predicted) over the 495 steps of two engines in one run here (bursty, 0.47/s, 60 s)."""
WITHIN = 0.1
AIMS = ("attainment", "met", "ttft_p50_s", "tpot_p50_s")


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both."""

    real: float
    simulated: float

    @property
    def difference(self) -> float:
        """Of the simulated figure from the real one, relative to that."""
        return self.simulated / self.real - 1 if self.real else float(self.simulated != 0)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.real.validate", description=__doc__)
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="mixed")
    parser.add_argument("--workload", type=Path, metavar="FILE")
    parser.add_argument("--systems", default="vllm,ours", help="comma-separated, of ours, vllm")
    parser.add_argument("--rate", type=float, default=6.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--hop-ms", type=float, default=HOP_S * 1e3, help="of a first token, as bench.overhead measures"
    )
    parser.add_argument(
        "--noise", type=float, default=NOISE, help="deviation of a step's duration from the model's, as a logarithm"
    )
    parser.add_argument("--parameters", default="50M")
    parser.add_argument("--log-dir", type=Path, metavar="DIR")
    add_arrivals(parser)
    raw.add_out(parser)
    parser.set_defaults(length_scale=0.25)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    spec = spec_of(args, args.scenario, args.rate, args.seconds, args.seed)
    found: dict[str, dict[str, Compared]] = {}
    try:
        with closing(RealMode(RealOptions(args.parameters, args.log_dir))) as mode:
            cases = [Case(system, spec, "", 2, workload=args.workload) for system in args.systems.split(",")]
            cases.sort(key=lambda case: case.system != "ours")  # its workers learn what their engines can do
            real = [mode.run(case) for case in cases[:1]]
            preset = preset_of(mean(mode.engine_models()) or measured(mode.model))
            real += [mode.run(case) for case in cases[1:]]
            for case, ran in zip(cases, real, strict=True):
                items = case.items()
                outcomes = simulate(case, items, mode.objectives(case), preset, args.hop_ms / 1e3, args.noise)
                found[case.system] = compare(ran, report(outcomes, len(items) / rate_of(items)))
            described = mode.described()
    except (SlosError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    result = {system: as_json(figures) for system, figures in found.items()} | described
    result["settings"] = raw.settings(args)
    raw.keep(args.out, "bench.real.validate", argv, result)
    print(json.dumps(result))
    return 0


def mean(models: Sequence[LatencyModel]) -> LatencyModel | None:
    """The mean of each coefficient; None of nothing. Engines of one kind have as many pieces."""
    if not models:
        return None
    pieces = [
        Piece(*np.mean([astuple(model.pieces[i]) for model in models], axis=0).tolist())
        for i in range(min(len(model.pieces) for model in models))
    ]
    rest = np.mean([(model.k_seq, model.k_kv, model.k_attn) for model in models], axis=0).tolist()
    return LatencyModel(tuple(pieces), *rest)


def measured(model: str) -> LatencyModel:
    """The latency model that a worker has measured of an idle engine on this machine; raises ProfileError."""
    found = sorted(Settings().profile_dir.glob(f"{file_stem(model)}-*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ProfileError(f"there is no profile of {model}: workers write one at their first start")
    latency = json.loads(found[-1].read_text())["latency"]
    pieces = tuple(Piece(**piece) for piece in latency.pop("pieces"))
    return LatencyModel(pieces, **latency)


def preset_of(latency: LatencyModel) -> Preset:
    """An engine of this machine for the simulator."""
    tokens = 2**30 // KV_BYTES_PER_TOKEN
    return Preset(
        "cpu", latency, tokens, KV_BYTES_PER_TOKEN, CPU_LINK, 2048, 64, block_size=32, transfer_setup_s=PULL_S
    )


def simulate(
    case: Case, items: Sequence[Item], objectives: Objectives, preset: Preset, hop_s: float, noise: float
) -> Sequence[Outcome]:
    """The case on simulated engines, under the SLOs of the real run."""
    settings = SimulationSettings(case.workers, hop_s=hop_s, noise=noise, prefill_workers=1, steps_known=True)
    context = Context(items, preset, settings, Tuning(2048))
    make_former, make_front = SYSTEMS[case.system](context)
    slos, seed = objectives.slos(items), case.spec.seed
    return Simulation(items, preset, objectives.tiers, settings, make_former, make_front, seed, slos).run().outcomes


def compare(real: Report, simulated: Report) -> dict[str, Compared]:
    """The figures of the aim, and the tails beside them."""
    figures: dict[str, Callable[[Report], float]] = {
        "attainment": lambda one: one.attainment,
        "met": lambda one: one.met,
        "ttft_p50_s": lambda one: one.ttft_s[0],
        "ttft_p99_s": lambda one: one.ttft_s[2],
        "tpot_p50_s": lambda one: one.tpot_s[0],
        "tpot_p99_s": lambda one: one.tpot_s[2],
    }
    return {name: Compared(get(real), get(simulated)) for name, get in figures.items()}


def as_json(figures: Mapping[str, Compared]) -> dict[str, Any]:
    """``within`` says whether what is aimed at differs by no more than 10 %."""
    return {
        **{
            name: {"real": one.real, "simulated": one.simulated, "difference": round(one.difference, 3)}
            for name, one in figures.items()
        },
        "within": all(abs(figures[name].difference) <= WITHIN for name in AIMS),
    }


if __name__ == "__main__":
    sys.exit(main())
