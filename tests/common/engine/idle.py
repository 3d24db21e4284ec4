"""A scheduler for our mixins that has nothing to schedule."""

from types import SimpleNamespace
from typing import Any


class Idle:
    """What our mixins ask of vLLM's scheduler, without requests."""

    block_size = 16
    num_lookahead_tokens = 0
    max_num_running_reqs = 8
    max_num_scheduled_tokens = 256
    requires_kv_delivery = False
    num_spec_tokens = 0

    def __init__(self, vllm_config: Any, waiting: Any = ()) -> None:
        self.vllm_config = vllm_config
        self.running: list[Any] = []
        self.waiting = waiting
        self.kv_holding_waiting: list[Any] = []
        self.finished_recving_kv_req_ids: set[str] = set()
        self.requests: dict[str, Any] = {}
        pool = SimpleNamespace(get_num_free_blocks=lambda: 0, num_gpu_blocks=100)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """Nothing was scheduled."""

    def get_request_counts(self) -> tuple[int, int]:
        return 0, 0
