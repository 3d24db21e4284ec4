"""What a study adds for its figures: every system at the same rates, and the main ones seen from near at one rate.

The rate looked at from near is the one that ours (or the first system) was found to hold with the first seed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from bench.case import Case, Mode
from bench.outcome import Outcome
from bench.results.records import Records
from bench.study import Found, point

LOWEST, HIGHEST = 0.4, 1.25
"""Rates of the curve, from the smallest capacity times this to the greatest times that."""
HOPELESS = 0.2
"""A system's curve ends at the first rate at which it attains less."""
NEAR = 3
"""So many systems are seen from near: ours, and those with the highest capacities after it."""
FLUID = ("bound",)
"""What has no requests to look at."""


@runtime_checkable
class Recording(Protocol):
    """A mode whose runs can be seen from near."""

    def record(self, case: Case) -> Sequence[Outcome]:
        """Run the case, and say what became of each request."""


def capture(mode: Mode, found: Sequence[Found], curve: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Scenario, system and what is added to its raw results; ``curve`` is a number of rates, 0 for none."""
    scenarios = list(dict.fromkeys(one.case.spec.scenario for one in found))
    for scenario in scenarios:
        of = [one for one in found if one.case.spec.scenario == scenario]
        near = _near(of)
        rates = _rates(of, curve)
        for one in of:
            added: dict[str, Any] = {}
            if rates and one.case.system not in FLUID:
                added["curve"] = list(_curve(mode, one, rates))
            if one in near and isinstance(mode, Recording):
                added["run"] = _run(mode, one, near[0])
            yield scenario, one.case.system, added


def _near(found: Sequence[Found]) -> list[Found]:
    able = [one for one in found if one.case.system not in FLUID and min(one.rates) > 0]
    return sorted(able, key=lambda one: (one.case.system != "ours", -math.prod(one.rates)))[:NEAR]


def _rates(found: Sequence[Found], curve: int) -> list[float]:
    rates = [rate for one in found if one.case.system not in FLUID for rate in one.rates if rate > 0]
    if curve < 2 or not rates:
        return []
    low, high = LOWEST * min(rates), HIGHEST * max(rates)
    return [low * (high / low) ** (i / (curve - 1)) for i in range(curve)]


def _curve(mode: Mode, found: Found, rates: Sequence[float]) -> Iterator[dict[str, Any]]:
    seed = next(iter(found.seeds))
    for rate in rates:
        report = mode.run(found.case.at(rate, seed))
        yield point(rate / found.case.workers, seed, report)
        if report.attainment < HOPELESS:
            return


def _run(mode: Recording, found: Found, main: Found) -> dict[str, Any]:
    seed = next(iter(main.seeds))
    rate = main.rates[0]
    return Records(rate, seed, mode.record(found.case.at(rate, seed))).as_json()
