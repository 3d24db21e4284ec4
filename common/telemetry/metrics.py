"""All Prometheus metrics. Shells call the metric objects themselves; :func:`render` makes the page.

They live in prometheus_client's default registry, so that the page also shows the process and, in a worker, vLLM.
The ``gen_ai_server_*`` three are OpenTelemetry's GenAI metrics under Prometheus names; the rest is our own.
"""

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
_TPOT_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84)
_SHORT_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_TRANSFER_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_BATCH_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

# requests
DECISIONS = Counter("slos_decisions", "Requests by the planner's decision.", ("tier", "verdict"))
REFUSED = Counter("slos_refused", "Requests refused at ingress, before they were accepted.", ("tier", "reason"))
ENDED = Counter("slos_requests_ended", "Requests that ended, by their end state.", ("tier", "state"))
ATTAINED = Counter("slos_attainment", "Ended requests that met their SLO (yes) or not (no).", ("tier", "attained"))
PROMPT_TOKENS = Counter("slos_prompt_tokens", "Prompt tokens of accepted requests.", ("tier",))
OUTPUT_TOKENS = Counter("slos_output_tokens", "Output tokens sent to clients.", ("tier",))

# queues
QUEUE_DEPTH = Gauge("slos_queue_depth", "Requests of a tier that wait, held ones included.", ("tier",))
OLDEST_WAIT_S = Gauge("slos_queue_oldest_wait_seconds", "Wait of a tier's oldest waiting request.", ("tier",))
REQUEUES = Counter("slos_requeues", "Requests put back into the queue, by reason.", ("reason",))
DEAD_LETTERS = Gauge("slos_dead_letters", "Of the latest 1000 requests that were given up, by reason.", ("reason",))

# latency as clients see it; kind is predicted (when admitted) or achieved
TTFT_S = Histogram("slos_ttft_seconds", "Time from arrival to the first token.", ("tier", "kind"), buckets=_TTFT_S)
TPOT_S = Histogram("slos_tpot_seconds", "Mean time per token after the first.", ("tier", "kind"), buckets=_TPOT_S)
RELAY_S = Histogram("slos_relay_seconds", "From a frame's time to its write to the client.", buckets=_SHORT_S)
GEN_AI_DURATION_S = Histogram(
    "gen_ai_server_request_duration_seconds",
    "Duration of a request, from arrival to its end.",
    ("gen_ai_operation_name", "gen_ai_request_model"),
    buckets=_DURATION_S,
)
GEN_AI_TTFT_S = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "Time from arrival to the first token of a successful request.",
    ("gen_ai_operation_name", "gen_ai_request_model"),
    buckets=_TTFT_S,
)
GEN_AI_TPOT_S = Histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "Mean time per token after the first of a successful request.",
    ("gen_ai_operation_name", "gen_ai_request_model"),
    buckets=_TPOT_S,
)

# planner
LEADER = Gauge("slos_leader", "1 while this process is the planner's leader.")
PLAN_S = Histogram("slos_plan_seconds", "Duration of one plan.", ("policy",), buckets=_SHORT_S)
FALLBACK = Gauge("slos_planner_fallback", "1 if the last plan was made by a simpler policy than the chosen one.")
PLAN_ERRORS = Counter("slos_plan_errors", "Plans that failed, and were made by a simpler policy.", ("policy",))
HELD = Gauge("slos_held_requests", "Requests in the planner's window.")
WORKERS = Gauge("slos_workers", "Live workers by the stage that they prefer.", ("stage",))
WORKER_DEATHS = Counter("slos_worker_deaths", "Workers declared dead after their heartbeat ran out.", ("stage",))

# hand-off
KV_TRANSFER_S = Histogram("slos_kv_transfer_seconds", "Duration of one pull of a KV cache.", buckets=_TRANSFER_S)
KV_LEASE_EXPIRIES = Counter("slos_kv_lease_expiries", "Hand-offs whose KV lease ended before the pull.")
HAND_OFFS_DROPPED = Counter("slos_hand_offs_dropped", "Hand-offs not used, and prefilled again.", ("reason",))
RECOMPUTED = Counter("slos_kv_recomputed", "Prompts recomputed because their KV was lost or refused.")

# engine
STEP_S = Histogram("slos_engine_step_seconds", "Duration of one engine iteration.", buckets=_STEP_S)
BATCH_TOKENS = Histogram("slos_engine_batch_tokens", "Tokens in one engine iteration.", buckets=_BATCH_TOKENS)
RUNNING = Gauge("slos_engine_running", "Sequences in the engine's batch.")
WAITING = Gauge("slos_engine_waiting", "Requests that wait inside of the engine.")
FREE_BLOCKS = Gauge("slos_engine_free_blocks", "KV blocks that are free.")
POLICY_ERRORS = Gauge("slos_engine_batch_policy_errors", "Steps that vLLM formed because the batch policy failed.")
SLOWDOWN = Gauge("slos_engine_slowdown", "Measured over predicted seconds of the engine's newest steps.")
TOTAL_BLOCKS = Gauge("slos_engine_total_blocks", "KV blocks of the engine.")


def render() -> tuple[bytes, str]:
    """The metrics page and its content type."""
    return generate_latest(), CONTENT_TYPE_LATEST
