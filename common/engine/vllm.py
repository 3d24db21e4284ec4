"""vLLM 0.32 (AsyncLLM) behind :class:`common.engine.interface.Engine`, on CPU and GPU."""

import asyncio
import contextlib
import itertools
import uuid
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from common.engine import vllm_config as configuration
from common.engine.checks import check_job, finish_of
from common.engine.exports import Reader
from common.engine.interface import Facts, Job, Load, Output
from common.engine.refine import Refiner
from common.engine.simulated import DEFAULT_LATENCY
from common.engine.vllm_build import build
from common.engine.vllm_jobs import Attempt, attempt_for, sampling_params, translated
from common.engine.vllm_notes import Observations
from common.engine.vllm_release import Releases
from common.errors import EngineDead, EngineError
from common.latency_model import LatencyModel
from common.messages import HandOff, Sampling, StepSample
from common.settings import Settings

_POLL_S = 0.02
_HANDSHAKE_S = 5.0
_PULL_CHECK_S = 0.25
_start_lock = asyncio.Lock()


class _Again(Exception):
    """The present attempt is given up for another one."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt


class VllmEngine:
    """One vLLM engine core in a child process, with NIXL for hand-offs in both directions.

    ``latency`` is what :meth:`load` reports and what batches are planned with; set it when a profile is known. From
    then on it follows the steps that are measured. ``scheduler_cls`` replaces the scheduler by its import path; it
    must export as :mod:`common.engine.vllm_scheduler` does.
    """

    def __init__(
        self,
        settings: Settings,
        latency: LatencyModel = DEFAULT_LATENCY,
        *,
        scheduler_cls: str | None = None,
    ) -> None:
        self._settings = settings
        self._scheduler_cls = scheduler_cls
        self._id = uuid.uuid4().hex
        self._reader = Reader()
        self._refiner = Refiner(latency, self._reader.tell)
        self._keys = itertools.count(1)
        self._observations = Observations(self._reader, self._refiner.add)
        self._refining: asyncio.Task[None] | None = None
        self._llm: Any = None
        self._facts: Facts | None = None
        self._eos: frozenset[int] = frozenset()
        self._releases = Releases(self._call)
        self._closed = False

    @property
    def latency(self) -> LatencyModel:
        """The present latency model; setting it makes it the one that refinement stays near."""
        return self._refiner.latency

    @latency.setter
    def latency(self, model: LatencyModel) -> None:
        self._refiner.restart(model)

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
        await self._warm_up(self._facts)
        self._refining = asyncio.create_task(self._refiner.run(self._observations.collect))
        return self._facts

    async def generate(self, job: Job) -> AsyncIterator[Output]:
        """Run a job; see :class:`common.engine.interface.Engine`."""
        facts = self._alive()
        check_job(job, facts)
        if finish := finish_of(job, list(job.generated), self._eos):
            yield Output((), finish)
            return
        key = next(self._keys)
        self._observations.begin(key)
        pull = job.hand_off is not None and job.hand_off.kv.get("fingerprint") == facts.fingerprint
        if job.hand_off is not None and not pull:
            self._observations.recomputed(key)
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
            self._observations.end(key)

    async def release(self, hand_off: HandOff) -> None:
        """Free a hand-off's KV; one that is gone already is fine."""
        self._alive()
        await self._releases.release(str(hand_off.kv["remote_request_id"]))

    async def introduce(self, peer: Mapping[str, Any]) -> None:
        """Shake hands with a peer; its first pull is then nearly as fast as the others.

        Returns when that is done or has taken 5 s; a failure is no error, for the pull tries again.
        """
        if peer.get("fingerprint") != self._alive().fingerprint or peer["engine"] == self._id:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HANDSHAKE_S):
                await self._call("slos_introduce", dict(peer))
                while peer["engine"] not in await self.peers():
                    await asyncio.sleep(_POLL_S)

    async def peers(self) -> frozenset[str]:
        """Names of the engines that this one has shaken hands with, as in their :meth:`address`."""
        self._alive()
        return frozenset(name for names in await self._call("slos_peers") for name in names)

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
        self._observations.collect()
        state = self._reader.state()
        running = int(state.running)
        return Load(
            running=running,
            running_tokens=int(state.running_tokens),
            waiting=max(int(state.waiting), len(self._observations) - running),
            waiting_tokens=int(state.waiting_tokens),
            free_blocks=int(state.free_blocks),
            step_ms=state.step_s * 1e3,
            latency=self.latency,
            policy_errors=int(state.policy_errors),
            draft_tokens=max(1.0, state.draft_tokens),
            slowdown=self._refiner.slowdown,
        )

    def busy_until_s(self) -> float:
        """See :class:`common.engine.interface.Engine`; vLLM's own scheduler predicts nothing."""
        return self._reader.state().busy_until_s

    def take_samples(self) -> list[StepSample]:
        """Batches run since the last call with their measured seconds, the newest 4,096 of them."""
        return self._observations.take_samples()

    async def drain(self) -> None:
        """Return once no job runs and no KV waits to be pulled; leases bound the latter."""
        while self._observations or self._reader.state().held:
            self._alive()
            await asyncio.sleep(_POLL_S)
        self._alive()

    async def close(self) -> None:
        """Stop the engine core; jobs that still run end with EngineDead."""
        self._closed = True
        if self._refining is not None:
            self._refining.cancel()
        llm, self._llm = self._llm, None
        if llm is not None:
            from common.engine.vllm_scheduler import stop

            await self._releases.close()
            await stop(llm)

    def _build(self) -> Facts:
        self._llm, self._eos, config = build(self._settings, self._id, self._reader.path, self._scheduler_cls)
        return configuration.facts(config, self._settings, int(self._reader.state().free_blocks))

    async def _warm_up(self, facts: Facts) -> None:
        """A first prefill and decode, several times as slow as later ones."""
        prompt = tuple(range(min(256, facts.vocab_size, facts.max_model_len // 2)))
        sampling = Sampling(max_tokens=2, temperature=0, ignore_eos=True)
        async for _ in self.generate(Job("warm-up", prompt, sampling)):
            pass
        self.take_samples()
        self._refiner.forget()
        await self._refiner.warm_up()

    async def _run(self, job: Job, attempt: Attempt, key: int) -> AsyncGenerator[Output, None]:
        output_tokens = list(job.generated[: len(job.generated) - len(attempt.replayed)])
        first, finish, hand_off = True, None, None
        try:
            with translated():
                async with aclosing(self._results(job, attempt, key)) as results:
                    async for result in results:
                        before = len(output_tokens)
                        output_tokens += result.outputs[0].token_ids
                        reason = result.outputs[0].finish_reason
                        self._compare(job, attempt, output_tokens, reason)
                        fresh = tuple(output_tokens[max(before, len(job.generated)) :])
                        if not fresh and reason is None:
                            continue
                        finish, hand_off = self._ending(job, attempt, output_tokens, result)
                        notes = {**self._observations.of(key), "cached_tokens": float(result.num_cached_tokens or 0)}
                        chunks = self._observations.chunks(key) if first else ()
                        yield Output(fresh, finish, hand_off, notes if first else {}, chunks)
                        first = False
        finally:
            if attempt.held and finish is None and hand_off is None:
                self._releases.release_job(f"{job.id}-{key}-")

    async def _results(self, job: Job, attempt: Attempt, key: int) -> AsyncGenerator[Any, None]:
        """vLLM's results; a pull that hangs is given up, and what it was for is recomputed."""
        params = sampling_params(job, attempt, self._eos, key)
        prompt = {"prompt_token_ids": list(attempt.prompt)}
        async with aclosing(self._llm.generate(prompt, params, f"{job.id}-{key}")) as stream:
            if attempt.transfer is not None and not attempt.held:
                yield await self._first_after_pull(stream, job, key)
            async for result in stream:
                yield result

    async def _first_after_pull(self, stream: AsyncGenerator[Any, None], job: Job, key: int) -> Any:
        pending = asyncio.ensure_future(anext(stream))
        try:
            while not (await asyncio.wait({pending}, timeout=_PULL_CHECK_S))[0]:
                pulling_s = self._observations.pulling_s(key)
                if pulling_s is not None and pulling_s > self._settings.kv_pull_timeout_s:
                    raise _Again(self._recompute(job, key))
            return pending.result()
        finally:
            if not pending.done():
                pending.cancel()
                await asyncio.wait({pending})

    def _recompute(self, job: Job, key: int) -> Attempt:
        self._observations.recomputed(key)
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
        kv = {**result.kv_transfer_params, "fingerprint": self._alive().fingerprint}
        expires_s = float(kv["slos_deadline_s"])
        return None, HandOff(
            self._id, kv, int(kv["remote_num_tokens"]), expires_s - self._settings.kv_lease_s, expires_s
        )

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of :class:`common.engine.nixl.WorkerExtension`."""
        with translated():
            return await self._llm.collective_rpc(method, args=arguments)

    def _alive(self) -> Facts:
        if self._closed or (self._llm is not None and self._llm.errored):
            raise EngineDead("the vLLM engine is dead")
        if self._facts is None:
            raise EngineError("the engine has not been started")
        return self._facts
