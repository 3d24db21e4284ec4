"""Planning policies behind one interface, chosen by name."""

from collections.abc import Callable, Mapping

from admission.plan import Policy
from admission.policies.edf import EarliestDeadlineFirst
from admission.policies.fcfs import FirstComeFirstServed
from admission.policies.ours import Ours

POLICIES: Mapping[str, Callable[[], Policy]] = {
    "ours": Ours,
    "edf": EarliestDeadlineFirst,
    "fcfs": FirstComeFirstServed,
}


def make_policy(name: str) -> Policy:
    """A policy by its name in :data:`POLICIES`; raises ValueError naming the known ones."""
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; known are {', '.join(POLICIES)}")
    return POLICIES[name]()
