"""What is assumed about everything around the engines."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker is lost at a time, and replaced by an empty one at another (None: never)."""

    worker: int
    at_s: float
    back_s: float | None = None


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """Times in seconds.

    ``hop_s``: all queue hops of a first token, half on the way in and half on the way out, for every system.
    ``plan_s``: from an event to the plan that knows it. ``replan_s``: shortest time between two plans. ``report_s``:
    between two heartbeats, in which a worker tells what it has made. ``dead_s``: a worker silent for this long is
    dead. ``noise``: deviation of an iteration's duration (lognormal). ``window``: requests that the planner holds.
    ``drain_s``: how long after the last arrival unfinished requests are still followed. ``prefill_workers``: how many
    of the workers prefer prompts; with 0 all are alike. ``steps_known``: the planner is told when each
    iteration will end; the product is where frames tell of it, and else estimates it.
    """

    workers: int = 4
    hop_s: float = 0.002
    plan_s: float = 0.001
    replan_s: float = 0.002
    report_s: float = 0.5
    dead_s: float = 3.0
    noise: float = 0.03
    window: int = 256
    drain_s: float = 600.0
    prefill_workers: int = 0
    steps_known: bool = False
    failures: tuple[Failure, ...] = ()
