"""What processes are told beside requests."""

from dataclasses import dataclass

from common.codec import message


@message
@dataclass(frozen=True, slots=True)
class Cancel:
    """anyone who ends a request -> every worker that has it, and admission."""

    id: str
    attempt: int
    reason: str


@message
@dataclass(frozen=True, slots=True)
class KeepTrace:
    """api -> everyone who touched a request: its SLO was missed, keep its spans even if not sampled."""

    trace_id: str


@message
@dataclass(frozen=True, slots=True)
class Known:
    """admission -> worker: the leader plans with this worker from now on."""

    planner: str


Control = Cancel | KeepTrace | Known
"""What every process receives on its control stream."""
