"""vLLM 0.32 (AsyncLLM) behind :class:`common.engine.interface.Engine`, on CPU and GPU."""

import asyncio
import contextlib
import itertools
import uuid
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from common.engine import vllm_config as configuration
from common.engine.checks import check_job, finish_of
from common.engine.exports import Event, Kind, Reader
from common.engine.interface import Facts, Job, Load, Output
from common.engine.simulated import DEFAULT_LATENCY
from common.engine.vllm_jobs import Attempt, attempt_for, sampling_params
from common.errors import EngineDead, EngineError, EngineRefused
from common.latency_model import Batch, LatencyModel
from common.messages import HandOff
from common.settings import Settings

_POLL_S = 0.02
_HANDSHAKE_S = 5.0
_PULL_CHECK_S = 0.25
_SAMPLES = 4096
_start_lock = asyncio.Lock()


class _Again(Exception):
    """The present attempt is given up for another one."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt


class VllmEngine:
    """One vLLM engine core in a child process, with NIXL for hand-offs in both directions.

    ``latency`` is what :meth:`load` reports; set it when a profile is known. ``scheduler_cls`` replaces the
    observed stock scheduler by its import path; it must export as :mod:`common.engine.vllm_scheduler` does.
    """

    def __init__(
        self,
        settings: Settings,
        latency: LatencyModel = DEFAULT_LATENCY,
        *,
        scheduler_cls: str | None = None,
    ) -> None:
        self.latency = latency
        self._settings = settings
        self._scheduler_cls = scheduler_cls
        self._id = uuid.uuid4().hex
        self._reader = Reader()
        self._keys = itertools.count(1)
        self._notes: dict[int, dict[str, float]] = {}
        self._samples: deque[tuple[Batch, float]] = deque(maxlen=_SAMPLES)
        self._llm: Any = None
        self._facts: Facts | None = None
        self._eos: frozenset[int] = frozenset()
        self._closed = False

    async def start(self) -> Facts:
        """Load the model and warm up; takes seconds to minutes and does not block the event loop."""
        try:
            async with _start_lock:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what vLLM's libraries deprecate; the engine core inherits it
                    self._facts = await asyncio.to_thread(self._build)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"vLLM did not start: {error}") from error
        finally:
            self._reader.unlink()
        return self._facts

    async def generate(self, job: Job) -> AsyncIterator[Output]:
        """Run a job; see :class:`common.engine.interface.Engine`."""
        facts = self._alive()
        check_job(job, facts)
        if finish := finish_of(job, list(job.generated), self._eos):
            yield Output((), finish)
            return
        key = next(self._keys)
        notes = self._notes.setdefault(key, {})
        pull = job.hand_off is not None and job.hand_off.kv.get("fingerprint") == facts.fingerprint
        if job.hand_off is not None and not pull:
            notes["recomputed"] = 1.0
        attempt: Attempt | None = attempt_for(job, facts.block_size, pull)
        try:
            while attempt is not None:
                try:
                    async with aclosing(self._run(job, attempt, key)) as outputs:
                        async for output in outputs:
                            yield output
                    attempt = None
                except _Again as again:
                    attempt = again.attempt
        finally:
            del self._notes[key]

    async def release(self, hand_off: HandOff) -> None:
        """Free a hand-off's KV; one that is gone already is fine."""
        self._alive()
        with _translated():
            await self._llm.collective_rpc("slos_release", args=(hand_off.kv["remote_request_id"],))

    async def introduce(self, peer: Mapping[str, Any]) -> None:
        """Shake hands with a peer; its first pull is then nearly as fast as the others.

        Returns when that is done or has taken 5 s; a failure is no error, for the pull tries again.
        """
        if peer.get("fingerprint") != self._alive().fingerprint or peer["engine"] == self._id:
            return
        with _translated(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HANDSHAKE_S):
                await self._llm.collective_rpc("slos_introduce", args=(dict(peer),))
                while peer["engine"] not in await self.peers():
                    await asyncio.sleep(_POLL_S)

    async def peers(self) -> frozenset[str]:
        """Names of the engines that this one has shaken hands with, as in their :meth:`address`."""
        self._alive()
        with _translated():
            known = await self._llm.collective_rpc("slos_peers")
        return frozenset(name for names in known for name in names)

    def address(self) -> Mapping[str, Any]:
        """Where this engine's NIXL agent answers handshakes."""
        return {
            "engine": self._id,
            "fingerprint": self._alive().fingerprint,
            "host": self._settings.nixl_host,
            "port": int(self._reader.state().nixl_port),
            "tp_size": self._settings.tensor_parallel_size,
        }

    def load(self) -> Load:
        """Load as of the engine core's last step; jobs that it has not seen yet count as waiting."""
        self._alive()
        self._collect()
        state = self._reader.state()
        running = int(state.running)
        return Load(
            running=running,
            running_tokens=int(state.running_tokens),
            waiting=max(int(state.waiting), len(self._notes) - running),
            waiting_tokens=int(state.waiting_tokens),
            free_blocks=int(state.free_blocks),
            step_ms=state.step_s * 1e3,
            latency=self.latency,
        )

    def take_samples(self) -> list[tuple[Batch, float]]:
        """Batches run since the last call with their measured seconds, the newest 4,096 of them."""
        self._collect()
        taken = list(self._samples)
        self._samples.clear()
        return taken

    async def drain(self) -> None:
        """Return once no job runs and no KV waits to be pulled; leases bound the latter."""
        while self._notes or self._reader.state().held:
            self._alive()
            await asyncio.sleep(_POLL_S)
        self._alive()

    async def close(self) -> None:
        """Stop the engine core; jobs that still run end with EngineDead."""
        self._closed = True
        llm, self._llm = self._llm, None
        if llm is not None:
            from common.engine.vllm_scheduler import stop

            await stop(llm)

    def _build(self) -> Facts:
        cpu = configuration.is_cpu_build()
        configuration.prepare_environment(cpu)
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from common.engine import nixl, vllm_cpu_worker, vllm_scheduler

        vllm_scheduler.check_internals()
        nixl.check_internals()
        settings = self._settings
        arguments = configuration.engine_arguments(settings, cpu, self._id, self._reader.path)
        config = AsyncEngineArgs(**arguments).create_engine_config()
        scheduling = config.scheduler_config
        scheduling.scheduler_cls = self._scheduler_cls or vllm_scheduler.scheduler_for(scheduling.async_scheduling)
        self._eos = configuration.stop_ids(config)
        if cpu:
            vllm_cpu_worker.check_internals()
            configuration.start_by_fork()
        self._llm = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        return Facts(
            fingerprint=configuration.fingerprint(config, settings),
            model=settings.served_model_name or settings.model,
            vocab_size=config.model_config.get_vocab_size(),
            max_model_len=config.model_config.max_model_len,
            block_size=config.cache_config.block_size,
            total_blocks=int(self._reader.state().free_blocks),
            max_seqs=scheduling.max_num_seqs,
            max_batch_tokens=scheduling.max_num_batched_tokens,
        )

    async def _run(self, job: Job, attempt: Attempt, key: int) -> AsyncGenerator[Output, None]:
        output_tokens = list(job.generated[: len(job.generated) - len(attempt.replayed)])
        first = True
        with _translated():
            params = sampling_params(job, attempt, self._eos, key)
            prompt = {"prompt_token_ids": list(attempt.prompt)}
            async with aclosing(self._llm.generate(prompt, params, f"{job.id}-{key}")) as stream:
                async for result in self._guarded(stream, job, attempt, key):
                    new = list(result.outputs[0].token_ids)
                    reason = result.outputs[0].finish_reason
                    before = len(output_tokens)
                    output_tokens += new
                    self._compare(job, attempt, output_tokens, reason)
                    fresh = tuple(output_tokens[max(before, len(job.generated)) :])
                    if not fresh and reason is None:
                        continue
                    finish, hand_off = self._ending(job, attempt, output_tokens, result)
                    yield Output(fresh, finish, hand_off, self._first_notes(key, result) if first else {})
                    first = False

    async def _guarded(
        self, stream: AsyncGenerator[Any, None], job: Job, attempt: Attempt, key: int
    ) -> AsyncIterator[Any]:
        """The stream, given up for a recomputation if it begins with a pull that hangs."""
        if attempt.transfer is not None and not attempt.held:
            pending = asyncio.ensure_future(anext(stream))
            try:
                while not (await asyncio.wait({pending}, timeout=_PULL_CHECK_S))[0]:
                    if self._pull_hangs(key):
                        raise _Again(self._recompute(job, key))
                yield pending.result()
            finally:
                if not pending.done():
                    pending.cancel()
                    await asyncio.wait({pending})
        async for result in stream:
            yield result

    def _pull_hangs(self, key: int) -> bool:
        self._collect()
        notes = self._notes[key]
        if "pull_started_s" not in notes or "kv_transfer_ms" in notes or "recomputed" in notes:
            return False
        return asyncio.get_running_loop().time() - notes["pull_seen_s"] > self._settings.kv_pull_timeout_s

    def _recompute(self, job: Job, key: int) -> Attempt:
        notes = self._notes[key]
        notes.clear()
        notes["recomputed"] = 1.0
        return attempt_for(job, self._alive().block_size, pull=False)

    def _compare(self, job: Job, attempt: Attempt, output_tokens: list[int], reason: str | None) -> None:
        """Give up the replay when it does not repeat what the client has already."""
        if not attempt.replayed:
            return
        have = len(job.generated)
        ended_early = reason is not None and len(output_tokens) <= have
        if ended_early or tuple(output_tokens[:have]) != job.generated[: len(output_tokens)]:
            raise _Again(attempt_for(job, self._alive().block_size, pull=False, replay=False))

    def _ending(
        self, job: Job, attempt: Attempt, output_tokens: list[int], result: Any
    ) -> tuple[str | None, HandOff | None]:
        reason = result.outputs[0].finish_reason
        if reason is None:
            return None, None
        if reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a request with {reason!r}")
        finish = finish_of(job, output_tokens, self._eos) if attempt.held else reason
        if finish is not None:
            return finish, None
        kv = result.kv_transfer_params
        expires_s = float(kv["slos_deadline_s"])
        kv = {**kv, "fingerprint": self._alive().fingerprint}
        produced_s = expires_s - self._settings.kv_lease_s
        return None, HandOff(self._id, kv, int(kv["remote_num_tokens"]), produced_s, expires_s)

    def _first_notes(self, key: int, result: Any) -> dict[str, float]:
        self._collect()
        notes = {name: value for name, value in self._notes[key].items() if not name.startswith("pull_")}
        if result.num_cached_tokens is not None:
            notes["cached_tokens"] = float(result.num_cached_tokens)
        return notes

    def _collect(self) -> None:
        for event in self._reader.events():
            if event.kind == Kind.STEP:
                tokens, seqs, kv_tokens, attended, drafts, seconds = event.values
                batch = Batch(int(tokens), int(seqs), int(kv_tokens), attended, int(drafts))
                self._samples.append((batch, seconds))
            elif event.key in self._notes:
                self._note(self._notes[event.key], event)

    def _note(self, notes: dict[str, float], event: Event) -> None:
        if event.kind == Kind.SCHEDULED:
            notes.setdefault("scheduled_s", event.values[0])
        elif event.kind == Kind.PULL_STARTED:
            notes["pull_started_s"] = event.values[0]
            notes["pull_seen_s"] = asyncio.get_running_loop().time()
        elif event.kind == Kind.PULLED:
            notes["kv_transfer_ms"] = event.values[0]
        elif event.kind in (Kind.PULL_FAILED, Kind.PULL_LATE):
            notes["recomputed"] = 1.0

    def _alive(self) -> Facts:
        if self._closed or (self._llm is not None and self._llm.errored):
            raise EngineDead("the vLLM engine is dead")
        if self._facts is None:
            raise EngineError("the engine has not been started")
        return self._facts


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """vLLM's errors as ours."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineDead("the vLLM engine has died") from error
    except ValueError as error:
        raise EngineRefused(str(error)) from error
