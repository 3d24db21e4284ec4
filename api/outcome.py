"""How an answer turned out: what was decided and predicted, what was achieved, and whether the SLO was met."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.delivery import Delivery
from api.problems import OVERLOAD_RETRY_S, Problem
from common.messages import Decision, End, State, Verdict
from common.slo import Objective, attained, pace, thinking_tokens

_FAILURES: Mapping[str, str] = {
    "worker_died": "The workers of this request died repeatedly.",
    "poison": "The request could not be planned repeatedly and was given up.",
    "refused_by_engine": "The engine does not accept this request.",
    "worker_error": "The worker failed on this request.",
    "tokens_lost": "Tokens of this answer were lost in the queue.",
    "record_lost": "The queue has lost this request.",
    "api_shutdown": "The server is shutting down.",
}
_STATUS = {"refused_by_engine": 422, "worker_died": 503, "api_shutdown": 503, "record_lost": 503}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times are milliseconds from arrival; ``attained`` is None where nothing was promised or the client left.

    ``tpot_ms`` is the answer's, which is the whole output unless ``thinking_tokens`` of it were thinking.
    """

    ttft_ms: float | None
    tpot_ms: float | None
    thinking_tpot_ms: float | None
    thinking_tokens: int
    total_ms: float | None
    attained: bool | None


def outcome_of(delivery: Delivery) -> Outcome:
    """What was achieved, by the times at which tokens were there to be sent to the client."""
    arrival_s = delivery.prepared.request.arrival_s
    times_s = delivery.times_s
    thought = _thought(delivery)
    achieved = pace(times_s, thought)
    return Outcome(
        ttft_ms=(times_s[0] - arrival_s) * 1e3 if times_s else None,
        tpot_ms=None if achieved.answer_s is None else achieved.answer_s * 1e3,
        thinking_tpot_ms=None if achieved.thinking_s is None else achieved.thinking_s * 1e3,
        thinking_tokens=len(times_s) if thought is None else thought,
        total_ms=None if delivery.ended_s is None else (delivery.ended_s - arrival_s) * 1e3,
        attained=_attained(delivery),
    )


def _attained(delivery: Delivery) -> bool | None:
    request, decision, end = delivery.prepared.request, delivery.decision, delivery.end
    if request.slo is None or end is None or end.state is State.CANCELLED:
        return None
    if end.state is not State.DONE or decision is None or decision.verdict is not Verdict.ADMITTED:
        return False
    objective = objective_of(decision, request.arrival_s)
    if objective is None:
        return False
    return attained(objective, delivery.times_s, _thought(delivery))


def _thought(delivery: Delivery) -> int | None:
    request = delivery.prepared.request
    return thinking_tokens(delivery.tokens, request.thinking_start, request.thinking_end)


def objective_of(decision: Decision, arrival_s: float) -> Objective | None:
    """The promise in absolute terms, None if there is none."""
    if decision.ttft_ms is None or decision.tpot_ms is None:
        return None
    thinking_s = None if decision.thinking_tpot_ms is None else decision.thinking_tpot_ms / 1e3
    return Objective(arrival_s, decision.ttft_ms / 1e3, decision.tpot_ms / 1e3, thinking_s)


def decision_body(decision: Decision | None) -> dict[str, Any] | None:
    """The decision as JSON."""
    if decision is None:
        return None
    return {
        "verdict": decision.verdict.value,
        "reason": decision.reason,
        "cycle": decision.cycle,
        "decided_s": decision.decided_s,
        "prefill_worker": decision.prefill_worker,
        "decode_worker": decision.decode_worker,
    }


def slo_body(decision: Decision | None, outcome: Outcome) -> dict[str, Any]:
    """Objective, prediction, achievement and verdict as JSON; None where there is none."""
    return {
        "objective": {
            "ttft_ms": decision and decision.ttft_ms,
            "tpot_ms": decision and decision.tpot_ms,
            "thinking_tpot_ms": decision and decision.thinking_tpot_ms,
        },
        "predicted": {
            "ttft_ms": decision and decision.predicted_ttft_ms,
            "tpot_ms": decision and decision.predicted_tpot_ms,
        },
        "achieved": {
            "ttft_ms": _ms(outcome.ttft_ms),
            "tpot_ms": _ms(outcome.tpot_ms),
            "thinking_tpot_ms": _ms(outcome.thinking_tpot_ms),
            "thinking_tokens": outcome.thinking_tokens,
        },
        "attained": outcome.attained,
    }


def usage_body(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Token counts under OpenAI's names."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def problem_of(delivery: Delivery) -> Problem | None:
    """Why there is no whole answer, None if there is one."""
    end = delivery.end
    if end is None or end.state is State.DONE:
        return None
    extra = {"request_id": delivery.prepared.request.id, "decision": decision_body(delivery.decision)}
    status, detail, retry_s = _describe(end, delivery.decision)
    headers = {"x-request-id": delivery.prepared.request.id}
    return Problem(status, end.reason, detail, retry_after_s=retry_s, extra=extra, headers=headers)


UNATTAINABLE = "slo_unattainable: "
"""How the planner's reason begins where waiting would not help; what is possible follows."""


def _describe(end: End, decision: Decision | None) -> tuple[int, str, float | None]:
    if end.state is State.REJECTED and end.detail.startswith(UNATTAINABLE):
        return 422, f"No engine here is fast enough for this SLO: {end.detail.removeprefix(UNATTAINABLE)}.", None
    if end.state is State.REJECTED:
        predicted_s = decision.retry_after_s if decision else None
        detail = f"The SLO can't be met now: {end.detail or end.reason}."
        return 429, detail, end.retry_after_s or predicted_s or OVERLOAD_RETRY_S
    if end.state is State.EXPIRED:
        detail = f"The request waited in vain: {end.detail or end.reason}."
        return 503, detail, end.retry_after_s or OVERLOAD_RETRY_S
    if end.state is State.CANCELLED:
        return 409, "The request was cancelled.", None
    status = _STATUS.get(end.reason, 502)
    # the engine's own words stay in the logs: they can quote the request
    detail = _FAILURES.get(end.reason, "The request failed.")
    return status, detail, OVERLOAD_RETRY_S if status == 503 else None


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
