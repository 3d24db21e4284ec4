"""vLLM's NIXL connector for stock servers that share a CPU machine: as it is, but without two things it does there.

On a CPU it binds every engine to the machine's last core, and its progress thread spins on a core of its own; both
would decide a comparison on two cores before a scheduler has a say.
"""

import os
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlPullConnector, base_worker


class GentleNixl(NixlPullConnector):  # type: ignore[misc] # vLLM is not typed for us
    """See the module."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        bind, config = os.sched_setaffinity, base_worker.nixl_agent_config
        os.sched_setaffinity = lambda *_: None
        base_worker.nixl_agent_config = lambda **options: config(enable_prog_thread=False, **options)
        try:
            super().__init__(vllm_config, role, kv_cache_config)
        finally:
            os.sched_setaffinity, base_worker.nixl_agent_config = bind, config
