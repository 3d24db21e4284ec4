"""The systems that are compared: each is a way to choose engines and a way to form their batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from admission.options import PlannerOptions
from admission.plan import Policy
from admission.policies import make_policy
from admission.policies.ours import Ours
from bench.simulator.central import CentralPlanner
from bench.simulator.formers import Former, PaperFormer, PrefillFirstFormer, SlackFormer, StockFormer
from bench.simulator.front import Front, Router, SplitRouter
from bench.simulator.settings import SimulationSettings
from bench.simulator.simulation import MakeFormer, MakeFront
from bench.simulator.world import World
from bench.workloads.item import Item
from common.batching import Former as FormerOptions
from common.presets import Preset
from common.speculation import MOST


@dataclass(frozen=True, slots=True)
class Tuning:
    """What is set by hand in a system: tokens of a batch, drafts a decode, engines for prompts."""

    budget: int = 2048
    drafts: int = 0
    prefill_workers: int = 1

    def __str__(self) -> str:
        return f"budget={self.budget} drafts={self.drafts} prefill={self.prefill_workers}"


@dataclass(frozen=True, slots=True)
class Ingredients:
    """The parts of ``ours`` that are not the planner's; the ablation switches them off."""

    planner: PlannerOptions = field(default_factory=PlannerOptions)
    former: FormerOptions = field(default_factory=FormerOptions)
    most_drafts: int = MOST
    always_draft: bool = False
    slack_batching: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """What a system is made for. ``history`` are outputs (tier, tokens) seen before the run."""

    items: Sequence[Item]
    preset: Preset
    settings: SimulationSettings
    tuning: Tuning
    ingredients: Ingredients = field(default_factory=Ingredients)
    history: Sequence[tuple[str, int]] = ()

    @property
    def reply_s(self) -> float:
        """From an engine to the client."""
        return self.settings.hop_s / 2

    def most_tokens(self) -> dict[str, int]:
        """What clients of each tier ask for at most: its longest output, rounded up to a power of two."""
        longest: dict[str, int] = {}
        for item in self.items:
            longest[item.tier] = max(longest.get(item.tier, 1), item.output_tokens)
        return {tier: 1 << (tokens - 1).bit_length() for tier, tokens in longest.items()}


Parts = tuple[MakeFormer, MakeFront]


def _stock(context: Context, in_turn: bool = False) -> Parts:
    tuning = context.tuning
    return _each(lambda: StockFormer(tuning.budget, tuning.drafts)), lambda world: Router(world, in_turn)


def _sarathi(context: Context) -> Parts:
    return _each(lambda: StockFormer(context.tuning.budget, decodes_first=True)), Router


def _prefill_first(context: Context) -> Parts:
    return _each(lambda: PrefillFirstFormer(context.tuning.budget)), Router


def _disagg(context: Context) -> Parts:
    tuning = context.tuning
    return _each(lambda: StockFormer(tuning.budget)), lambda world: SplitRouter(world, tuning.prefill_workers)


def _ours(context: Context) -> Parts:
    parts = context.ingredients

    def former() -> Former:
        if not parts.slack_batching:
            return StockFormer(context.tuning.budget)
        return SlackFormer(parts.former, context.reply_s, parts.most_drafts, parts.always_draft)

    return _each(former), _planner(context, lambda: Ours(parts.planner))


def _edf(context: Context) -> Parts:
    budget = context.tuning.budget
    return _each(lambda: StockFormer(budget)), _planner(context, lambda: make_policy("edf"), oracle=True)


def _slos_serve(context: Context) -> Parts:
    preset = context.preset
    former = _each(lambda: PaperFormer(context.reply_s, preset.acceptance, preset.drafts))
    return former, _planner(context, lambda: make_policy("slos-serve"), oracle=True)


def _each(make: Callable[[], Former]) -> MakeFormer:
    return lambda _: make()


def _planner(context: Context, policy: Callable[[], Policy], oracle: bool = False) -> MakeFront:
    """Baselines that reserve by output length are told it; the product never is."""

    def front(world: World) -> Front:
        return CentralPlanner(world, policy(), None if oracle else context.most_tokens(), context.history)

    return front


SYSTEMS: Mapping[str, Callable[[Context], Parts]] = {
    "ours": _ours,
    "vllm": _stock,
    "vllm-spec": _stock,
    "vllm-prefill-first": _prefill_first,
    "sarathi": _sarathi,
    "disagg": _disagg,
    "edf": _edf,
    "slos-serve": _slos_serve,
}
"""By name; ``bound`` is no system (:mod:`bench.simulator.bound`)."""

__all__ = ["SYSTEMS", "Context", "Ingredients", "Tuning"]
