"""What a worker tells operators: metrics, and the spans of a job after the fact."""

from common.engine.interface import Load
from common.messages import Stage, State
from common.slo import CHECK_EVERY, Objective, thinking_tokens
from common.telemetry import metrics, names, tracing
from common.worker.job import JobTimes, WorkJob, objective_of


def load(now: Load) -> None:
    """Gauges, with every heartbeat."""
    metrics.RUNNING.set(now.running)
    metrics.WAITING.set(now.waiting)
    metrics.FREE_BLOCKS.set(now.free_blocks)
    metrics.POLICY_ERRORS.set(now.policy_errors)
    metrics.SLOWDOWN.set(now.slowdown)


def job(done: WorkJob, worker: str, now_s: float) -> None:
    """Metrics and spans of a job that has ended here, however it ended."""
    times, work = done.times, done.work
    notes = times.notes
    if times.dropped_hand_off:
        metrics.HAND_OFFS_DROPPED.labels("too_old").inc()
    if notes.get("recomputed"):
        metrics.RECOMPUTED.inc()
    if notes.get("lease_expired"):
        metrics.KV_LEASE_EXPIRIES.inc()
    if work.hand_off is not None and "kv_transfer_ms" in notes:
        metrics.KV_TRANSFER_S.observe(notes["kv_transfer_ms"] / 1e3)
    if tracing.enabled():
        if done.stage is Stage.PREFILL or work.hand_off is None or times.dropped_hand_off:
            _prefill_span(done, worker, now_s)
        if work.hand_off is not None and times.token_times_s:
            _transfer_span(done, worker)
        if done.stage is Stage.DECODE or (done.stays and len(times.token_times_s) > 1):
            _decode_span(done, worker, now_s)


def _prefill_span(done: WorkJob, worker: str, now_s: float) -> None:
    times, work = done.times, done.work
    first_s = times.token_times_s[0] if times.token_times_s else now_s
    scheduled_s = times.notes.get("scheduled_s", times.taken_s)
    attributes = {
        **names.process_attributes(f"prefill.{worker}", work.request.id, group=None),
        **names.work_attributes(work, worker),
        names.QUEUE_WAIT_MS: max(0.0, scheduled_s - work.decision.decided_s) * 1e3,
        names.INPUT_TOKENS: len(work.request.prompt) + len(work.generated),
        names.CACHED_TOKENS: int(times.notes.get("cached_tokens", 0)),
    }
    events = prefill_events(times)
    tracing.record_span(
        names.PREFILL, work.trace, times.taken_s, first_s, attributes, events=events, error=_error(times)
    )


def prefill_events(times: JobTimes) -> list[tracing.Event]:
    """The chunks of the prompt and the first token."""
    events = [names.chunk_event(chunk.tokens, chunk.computed, chunk.time_s) for chunk in times.chunks]
    return [*events, *((names.FIRST_TOKEN, time_s, {}) for time_s in times.token_times_s[:1])]


def _transfer_span(done: WorkJob, worker: str) -> None:
    times, work = done.times, done.work
    assert work.hand_off is not None
    ended_s = times.token_times_s[0]
    started_s = max(times.taken_s, ended_s - times.notes.get("kv_transfer_ms", 0.0) / 1e3)
    attributes = {
        **names.transfer_attributes(work.hand_off, times.taken_s, times.notes),
        names.REQUEST_ID: work.request.id,
        names.WORKER: worker,
    }
    tracing.record_span(names.KV_TRANSFER, work.trace, started_s, ended_s, attributes)


def _decode_span(done: WorkJob, worker: str, now_s: float) -> None:
    times, work = done.times, done.work
    objective = objective_of(work)
    before = len(work.generated)
    attributes = {
        **names.process_attributes(f"decode.{worker}", work.request.id, group=None),
        **names.work_attributes(work, worker),
        names.OUTPUT_TOKENS: before + len(times.token_times_s),
        **(names.end_attributes(times.end, before + len(times.token_times_s)) if times.end else {}),
    }
    start_s = times.taken_s if done.stage is Stage.DECODE else times.token_times_s[0]
    events = [] if objective is None else slack_events(objective, done)
    end_s = times.token_times_s[-1] if times.token_times_s else now_s
    tracing.record_span(names.DECODE, work.trace, start_s, end_s, attributes, events=events, error=_error(times))


def slack_events(objective: Objective, done: WorkJob) -> list[tracing.Event]:
    """Slack at each checked token; a first token of unknown time counts as in time."""
    request, times_s, before = done.work.request, done.times.token_times_s, len(done.work.generated)
    first_s = times_s[0] if times_s and before == 0 else done.work.first_token_s or objective.prefill_due_s
    thought = thinking_tokens(done.generated, request.thinking_start, request.thinking_end)
    return [
        names.slack_event(position, time_s, objective.token_due_s(position, first_s, thought))
        for position, time_s in enumerate(times_s, start=before + 1)
        if position % CHECK_EVERY == 0
    ]


def _error(times: JobTimes) -> str | None:
    return times.end.reason if times.end is not None and times.end.state is State.FAILED else None
