"""All settings, from environment variables named ``SLOS_<FIELD>``; ``slos-serve settings`` prints the table."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.engine.cpus import PATTERN
from common.presets import PRESETS


class Settings(BaseSettings):
    """Settings of every process; a process ignores what it does not use. Invalid values stop it at start."""

    model_config = SettingsConfigDict(env_prefix="SLOS_", env_ignore_empty=True, extra="ignore", frozen=True)

    # queue
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis; rediss:// for TLS")
    redis_socket: Path | None = Field(
        None, description="unix socket of the same Redis, cheaper on one machine; the online path uses it where set"
    )
    namespace: str = Field("slos", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="prefix of all keys")

    # model and engine
    model: str = Field("bench/tiny_model/target", description="Hugging Face name or folder of the model")
    served_model_name: str | None = Field(None, description="name shown to clients; default: the model's last part")
    draft_model: str | None = Field(None, description="draft model for speculation")
    engine: Literal["vllm", "simulated"] = Field("vllm", description="engine behind the workers")
    preset: str | None = Field(
        None,
        description="named model and GPU: the speed and memory of simulated engines, and what a vLLM engine is planned "
        "with where it can't be measured; an unknown name is answered with the known ones",
    )
    dtype: str = Field("auto", description="vLLM dtype; on CPU float32 unless set")
    max_model_len: int | None = Field(None, gt=0, description="longest prompt plus output; default: the model's")
    max_num_seqs: int = Field(64, gt=0, description="sequences in one batch")
    max_num_batched_tokens: int = Field(2048, gt=0, description="tokens in one batch")
    block_size: int = Field(32, gt=0, description="tokens of a KV block; equal on all workers; on CPU a multiple of 32")
    engine_cpus: str | None = Field(
        None,
        pattern=PATTERN,
        description="CPUs that a CPU engine computes on, as 0,2-3; slos-serve up gives each engine its own; unset: any",
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of a CPU engine, GiB")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of GPU memory for a GPU engine")
    tensor_parallel_size: int = Field(1, gt=0, description="GPUs of one engine")
    thinking_start: str | None = Field(None, description="token that a model's thinking begins with; default: <think>")
    thinking_end: str | None = Field(None, description="token that ends a model's thinking; default: </think>")
    trust_remote_code: bool = Field(False, description="run code that the model's repository ships")
    kv_lease_s: float = Field(30.0, gt=1, description="how long a producer keeps KV for a pull")
    kv_pull_timeout_s: float = Field(5.0, gt=0, description="a KV pull that takes longer is given up and recomputed")
    enforce_eager: bool | None = Field(None, description="run the model uncompiled; default: only on CPU")
    batch_policy: Literal["slo", "stock"] = Field("slo", description="who forms batches: token deadlines, or vLLM")
    batch_margin: float | None = Field(
        None, ge=0, lt=1, description="share of each deadline's distance left free in batches; default: as steps vary"
    )
    best_effort_share: float = Field(0.05, ge=0, le=1, description="least share of tokens that best effort gets")
    speculation: Literal["off", "ngram", "draft"] = Field("off", description="how tokens are drafted")
    speculation_tokens: int = Field(5, ge=1, le=10, description="longest draft")
    profile_dir: Path = Field(Path(".cache/profiles"), description="where latency profiles are kept")

    # workers
    worker_name: str | None = Field(None, description="name of a worker; a random suffix is added")
    prefill_may: str = Field("prefill,decode", description="what prefill workers may do")
    decode_may: str = Field("decode,prefill", description="what decode workers may do")
    worker_host: str = Field("127.0.0.1", description="address that workers bind and announce")
    worker_port: int = Field(0, ge=0, le=65535, description="health and metrics port of a worker; 0: a free one")
    nixl_host: str = Field("127.0.0.1", description="address that other engines reach this one's KV at")
    frame_ms: float = Field(
        0.0, ge=0, le=1000, description="how long tokens that are not due yet may wait to travel together; 20 saves CPU"
    )
    heartbeat_s: float = Field(0.5, gt=0, description="between heartbeats")
    worker_dead_s: float = Field(3.0, gt=0, description="a worker silent for this long is dead")
    drain_s: float = Field(60.0, ge=0, description="longest time that SIGTERM waits for running requests")

    # admission
    policy: Literal["ours", "slos-serve", "edf", "fcfs"] = Field("ours", description="planner; ours is the product's")
    hold_ms: float | None = Field(
        None,
        ge=0,
        description="how long a promised request may wait centrally; unset: for ever with four workers, 0 with fewer",
    )
    plan_margin: float = Field(0.05, ge=0, le=1, description="share by which predicted times are stretched for safety")
    elastic: bool = Field(True, description="let a worker do the other stage where a hand-off buys nothing")
    plan_log: Path | None = Field(
        None, description="file for a bounded log of plans, for slos-serve replay; unset: none"
    )
    window: int = Field(256, gt=0, description="requests that one plan decides on")
    replan_ms: float = Field(2.0, ge=0, description="shortest time between two plans")
    leader_ttl_s: float = Field(2.0, gt=0, description="a silent planner leader is replaced after this")
    hop_ms: float = Field(2.0, ge=0, description="queue hops that a prefill deadline leaves room for")
    admission_host: str = Field("127.0.0.1", description="health and metrics address of admission")
    admission_port: int = Field(0, ge=0, le=65535, description="health and metrics port of admission; 0: a free one")

    # tiers
    tiers_file: Path | None = Field(None, description="YAML file of SLO tiers; default: common/tiers.yaml")
    tpot_scale: float = Field(1.0, gt=0, description="stretches every tier's TPOT to fit a slower engine")

    # api
    host: str = Field("127.0.0.1", description="address that the api binds")
    port: int = Field(8000, ge=0, le=65535, description="port of the api")
    api_keys: SecretStr | None = Field(None, description="comma-separated key or tenant=key; unset: no authentication")
    max_body_bytes: int = Field(4 * 1024 * 1024, gt=0, description="largest request body")
    keep_alive_s: float = Field(10.0, gt=0, description="between keep-alive comments of an idle SSE stream")
    shutdown_s: float = Field(30.0, ge=0, description="longest time that SIGTERM waits for open responses")
    rehearsals: int = Field(
        3, ge=0, le=100, description="requests that an api sends through the pipeline before it is ready; 0: none"
    )

    # records and offline work
    retention_s: float = Field(3600.0, gt=0, description="how long ended requests can be looked up")
    file_retention_s: float = Field(7 * 86400.0, gt=0, description="how long files and batches are kept")
    max_file_bytes: int = Field(64 * 1024 * 1024, gt=0, description="largest batch input file")
    file_quota_bytes: int = Field(512 * 1024 * 1024, gt=0, description="largest sum of one tenant's files")
    batch_concurrency: int = Field(16, gt=0, description="lines of one batch in the pipeline at a time")
    batch_max_lines: int = Field(50_000, gt=0, description="lines of one batch")
    batch_tier: str = Field("batch", description="tier in which the lines of batches wait")
    batch_slice_s: float = Field(30.0, gt=0, le=300, description="longest run of a batch task before it queues itself")
    batch_lock_s: float = Field(15.0, gt=0.1, le=300, description="a batch whose task is silent for this is resumed")
    celery_concurrency: int = Field(2, gt=0, description="background tasks of one Celery worker at a time")
    celery_metrics_port: int = Field(0, ge=0, le=65535, description="metrics port of a Celery worker; 0: none")
    refit_s: float = Field(30.0, gt=0, description="between two refits of the latency model")

    # telemetry
    log_format: Literal["json", "console"] = Field("console", description="json for machines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    trace_ratio: float = Field(1.0, ge=0, le=1, description="share of requests traced; SLO misses always are")
    trace_buffer_requests: int = Field(4096, gt=0, description="unsampled traces kept in case they miss their SLO")
    trace_buffer_s: float = Field(600.0, gt=0, description="how long an unsampled trace is kept in case of a miss")

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
        return name


def load_settings() -> Settings:
    """Settings from the environment; raises pydantic.ValidationError naming the variable."""
    return Settings()
