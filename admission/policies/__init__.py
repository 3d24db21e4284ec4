"""Planning policies behind one interface, chosen by name."""

from collections.abc import Callable, Mapping

from admission.options import PlannerOptions
from admission.plan import Policy
from admission.policies.edf import EarliestDeadlineFirst
from admission.policies.fcfs import FirstComeFirstServed
from admission.policies.impossible import RefuseImpossible
from admission.policies.ours import Ours
from admission.policies.slos_serve import SlosServe
from common.settings import Settings

POLICIES: Mapping[str, Callable[[PlannerOptions], Policy]] = {
    "ours": Ours,
    "slos-serve": lambda _: SlosServe(),
    "edf": lambda _: EarliestDeadlineFirst(),
    "fcfs": lambda _: FirstComeFirstServed(),
    "impossible": lambda _: RefuseImpossible(),
}
"""``impossible`` is asked before any of the others, and can't be chosen alone."""


def make_policy(name: str, settings: Settings | None = None) -> Policy:
    """A policy by its name in :data:`POLICIES`; raises ValueError naming the known ones."""
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; known are {', '.join(POLICIES)}")
    return POLICIES[name](options_of(settings) if settings else PlannerOptions())


def options_of(settings: Settings) -> PlannerOptions:
    """The planner's parameters that settings decide."""
    hold_ms = settings.hold_ms
    return PlannerOptions(
        hold_s=None if hold_ms is None else hold_ms / 1e3,
        margin=settings.plan_margin,
        best_effort_share=settings.best_effort_share,
        elastic=settings.elastic,
    )
