"""NIXL's pull connector with guards, loaded by vLLM inside the engine (``kv_connector_module_path``).

What it adds, and why (each was seen to go wrong without it): CPU affinity is left alone and no progress thread
spins on a CPU; the lease's deadline travels with the hand-off and a late one is recomputed, because a read after
expiry returns other data; the external token count is capped to what was prefilled, because a longer decode
prompt kills the engine; KV can be released and peers can shake hands before the first pull.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import vllm
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import NixlPullConnector, base_worker
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.pull_worker import NixlPullConnectorWorker
from vllm.platforms import current_platform
from vllm.v1.request import RequestStatus

from common.engine.exports import Kind
from common.engine.vllm_scheduler import key_of, writer_of
from common.errors import EngineError

DEADLINE = "slos_deadline_s"
"""Key in ``kv_transfer_params``: epoch seconds until which the producer keeps the KV."""

_MARGIN_SHARE = 0.25
"""Of the lease: the consumer's first renewal, a sixth of the lease later, must still come in time."""


def check_internals() -> None:
    """Raise EngineError if this vLLM lacks anything that this file relies on."""
    needed = {
        NixlPullConnector: (
            "get_transfer_results",
            "request_finished_all_groups",
            "on_new_request",
            "get_num_new_matched_tokens",
            "update_state_after_alloc",
            "update_connector_output",
            "set_xfer_handshake_metadata_pp_aware",
        ),
        NixlPullConnectorWorker: ("_ensure_handshake", "_get_new_notifs"),
        base_worker: ("nixl_agent_config",),
    }
    missing = [
        f"{owner.__name__}.{name}" for owner, names in needed.items() for name in names if not hasattr(owner, name)
    ]
    if missing:
        raise EngineError(f"vLLM {vllm.__version__} is not supported: it lacks {', '.join(missing)}; 0.32 is")


class GuardedNixl(NixlPullConnector):  # type: ignore[misc] # vLLM is not typed for us
    """The connector, on the scheduler's side and on the worker's."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        with _gentle_on_cpu():
            super().__init__(vllm_config, role, kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._lease_s = float(extra["kv_lease_duration"])
        self._released: set[str] = set()
        self._sent: set[str] = set()
        self._pulls: dict[str, tuple[int, float, float]] = {}
        if role is KVConnectorRole.SCHEDULER:
            self._writer = writer_of(vllm_config)
            self.connector_scheduler.side_channel_host = extra["side_channel_host"]
            pool_bytes = sum(tensor.size for tensor in kv_cache_config.kv_cache_tensors)
            self._token_bytes = pool_bytes / kv_cache_config.num_blocks / vllm_config.cache_config.block_size

    # scheduler side

    def set_xfer_handshake_metadata_pp_aware(self, metadata: Any) -> None:
        """Listen for handshakes on a port that is free now, and export it."""
        scheduler = self.connector_scheduler
        with socket.socket() as probe:
            probe.bind((scheduler.side_channel_host, 0))
            scheduler.side_channel_port = probe.getsockname()[1]
        self._writer.update(nixl_port=scheduler.side_channel_port)
        super().set_xfer_handshake_metadata_pp_aware(metadata)

    def on_new_request(self, request: Any) -> None:
        """Renewal of the lease starts here, so here is the last safe moment to refuse a late hand-off."""
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill"):
            deadline_s = float(params.get(DEADLINE) or 0.0)
            if time.time() > deadline_s - self._lease_s * _MARGIN_SHARE:
                params["do_remote_prefill"] = False
                params["remote_block_ids"] = params["remote_engine_id"] = None
                self._writer.event(Kind.PULL_LATE, key_of(request))
        super().on_new_request(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Never more than the producer has computed."""
        count, asynchronous = super().get_num_new_matched_tokens(request, num_computed_tokens)
        params = request.kv_transfer_params or {}
        if count and params.get("do_remote_prefill"):
            count = max(0, min(count, int(params.get("remote_num_tokens") or 0) - num_computed_tokens))
        return count, bool(count) and asynchronous

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note when the pull was ordered."""
        params = request.kv_transfer_params or {}
        if params.get("do_remote_prefill") and num_external_tokens > 0:
            key = key_of(request)
            size_bytes = num_external_tokens * self._token_bytes
            self._pulls[request.request_id] = (key, time.perf_counter(), size_bytes)
            self._writer.event(Kind.PULL_STARTED, key, time.time())
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def update_connector_output(self, connector_output: Any) -> None:
        """Note how long finished pulls took, and what they moved."""
        super().update_connector_output(connector_output)
        for request_id in connector_output.finished_recving or ():
            key, ordered_s, size_bytes = self._pulls.pop(request_id, (0, 0.0, 0.0))
            kind = Kind.PULL_FAILED if request_id in connector_output.failed_recving else Kind.PULLED
            self._writer.event(kind, key, (time.perf_counter() - ordered_s) * 1e3, size_bytes)

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Hold KV only for a job that goes on elsewhere, and say until when."""
        params = request.kv_transfer_params or {}
        if params.get("do_remote_decode") and request.status == RequestStatus.FINISHED_STOPPED:
            self.connector_scheduler._reqs_not_processed.add(request.request_id)
            return False, None
        delay, reply = super().request_finished_all_groups(request, block_ids)
        if reply and reply.get("do_remote_prefill"):
            reply[DEADLINE] = time.time() + self._lease_s
        return delay, reply

    # worker side

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """Report released KV as sent, so that the scheduler frees it."""
        results = super().get_transfer_results(finished_req_ids)
        results.finished_sending.update(self._sent)
        self._sent.clear()
        while self._released:
            request_id = self._released.pop()
            worker = self.connector_worker
            if request_id in worker._reqs_to_process:
                worker._reqs_to_process.discard(request_id)
                worker._reqs_to_send.pop(request_id, None)
                results.finished_sending.add(request_id)
        return results

    def release(self, request_id: str) -> None:
        """Free held KV with the next step; there is one within milliseconds while KV is held."""
        self._released.add(request_id)

    def release_job(self, prefix: str) -> None:
        """Free what requests whose id begins so hold; for those that were aborted this does nothing."""
        self._released.update(name for name in self.connector_worker._reqs_to_process if name.startswith(prefix))

    def progress(self) -> None:
        """Let NIXL move data between steps; pulls that it reports are passed on with the next step."""
        self._sent.update(self.connector_worker._get_new_notifs())

    def introduce(self, peer: Mapping[str, Any]) -> None:
        """Shake hands in the background; a failure costs nothing, the pull tries again."""
        self.connector_worker._ensure_handshake(peer["engine"], peer["host"], peer["port"], peer["tp_size"])

    def peers(self) -> list[str]:
        """Engines that this one has shaken hands with."""
        return list(self.connector_worker._remote_agents)


class WorkerExtension:
    """Mixed into vLLM's worker: what :class:`common.engine.vllm.VllmEngine` calls there."""

    def slos_release(self, request_id: str) -> None:
        """See :meth:`GuardedNixl.release`."""
        get_kv_transfer_group().release(request_id)

    def slos_release_job(self, prefix: str) -> None:
        """See :meth:`GuardedNixl.release_job`."""
        get_kv_transfer_group().release_job(prefix)

    def slos_progress(self) -> None:
        """See :meth:`GuardedNixl.progress`."""
        get_kv_transfer_group().progress()

    def slos_introduce(self, peer: Mapping[str, Any]) -> None:
        """See :meth:`GuardedNixl.introduce`."""
        get_kv_transfer_group().introduce(peer)

    def slos_peers(self) -> list[str]:
        """See :meth:`GuardedNixl.peers`."""
        return get_kv_transfer_group().peers()  # type: ignore[no-any-return] # ours, behind vLLM's type


@contextlib.contextmanager
def _gentle_on_cpu() -> Iterator[None]:
    """While the connector is built: no pinning to the last core, no thread that polls for progress."""
    if current_platform.device_type != "cpu":
        yield
        return
    pin, config = os.sched_setaffinity, base_worker.nixl_agent_config
    os.sched_setaffinity = lambda *_: None
    if config is not None:
        base_worker.nixl_agent_config = lambda **options: config(enable_prog_thread=False, **options)
    try:
        yield
    finally:
        os.sched_setaffinity = pin
        base_worker.nixl_agent_config = config
