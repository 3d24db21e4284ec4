"""An engine that sleeps for the latency model's time: demos, tests without vLLM, load tests of the control plane.

Its tokens are a function of the text so far, so a hand-off and a re-dispatch give the same text as one engine.
"""

import asyncio
import contextlib
import json
import uuid
import zlib
from array import array
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import beside
from common.batching import Former, warm_up
from common.engine.checks import check_job, finish_of
from common.engine.clock import Clock, SystemClock
from common.engine.interface import Facts, Job, Load, Output
from common.engine.margin import LEAST
from common.engine.promises import Promise, terms_of
from common.engine.simulated_batching import SlackBatches
from common.engine.simulated_core import Core, Grant, Phase, Sequence, batch_of
from common.engine.simulated_kv import HeldKv, KvRegistry
from common.errors import EngineDead
from common.latency_model import LatencyModel, Piece
from common.messages import HandOff, StepSample
from common.presets import Preset
from common.settings import Settings

DEFAULT_LATENCY = LatencyModel((Piece(0.0, 0.0, 0.006), Piece(1e-4, 1e-4, 0.004)), k_seq=2e-4, k_kv=1e-6, k_attn=1e-8)
"""About a 26 M-parameter model on one CPU core."""

BYTES_PER_TOKEN = 8 * 1024
TRANSFER_S = 0.015
"""KV of a token, and how long a hand-off takes, where no preset says it."""
_FIRST_PLAIN_TOKEN = 16
_UNSHARED_HOLD_S = 0.1
_SAMPLES = 4096
_POLL_S = 0.02
"""How long the batch policy is left alone when nothing that waits had room."""


class SimulatedEngine:
    """Continuous batching with chunked prefill and bounded KV, at the latency model's speed.

    Batches are the product's, or first come first served with ``batch_policy`` stock.

    A ``preset`` decides on speed, KV and links where they are not given; how many sequences and tokens a batch holds is
    the settings'. It drafts nothing, whatever the preset does.

    Engines with one ``registry`` pull from each other. Without one, producer and consumer are taken to be in
    different processes: a hand-off is trusted after ``transfer_s``, and the producer frees its KV by itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        preset: Preset | None = None,
        latency: LatencyModel | None = None,
        registry: KvRegistry | None = None,
        clock: Clock | None = None,
        total_blocks: int | None = None,
        transfer_s: float | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        tokens = preset.kv_tokens if preset else int(settings.kv_cache_gib * 2**30) // BYTES_PER_TOKEN
        self._id = f"simulated-{uuid.uuid4().hex[:12]}"
        machine = f"simulated {preset.name}" if preset else "simulated"
        self._facts = _facts(settings, total_blocks or tokens // settings.block_size, machine)
        self.latency = self._speed = latency or (preset.latency if preset else DEFAULT_LATENCY)
        self._samples: deque[StepSample] = deque(maxlen=_SAMPLES)
        self._registry = registry
        self._clock = clock or SystemClock()
        self.transfer_s = transfer_s if transfer_s is not None else preset.transfer_setup_s if preset else TRANSFER_S
        self._token_bytes = preset.kv_bytes_per_token if preset else BYTES_PER_TOKEN
        self._token_s = self._token_bytes / preset.link_bytes_per_s if preset else 0.0
        self._lease_s = settings.kv_lease_s
        self._eos = eos_token_ids
        self._hop_s = settings.hop_ms / 1e3
        self._batches: SlackBatches | None = None
        if settings.batch_policy == "slo":
            margin = LEAST if settings.batch_margin is None else settings.batch_margin  # steps are as predicted
            self._batches = SlackBatches(Former(margin=margin, share=settings.best_effort_share))
        self._core = Core(
            self._facts.total_blocks, settings.block_size, settings.max_num_seqs, self._facts.max_batch_tokens
        )
        self._outboxes: dict[int, asyncio.Queue[Output | EngineDead]] = {}
        self._held = HeldKv(self._give_back)
        self._tasks: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._dead = False
        self._step_s = self._busy_until_s = 0.0

    async def start(self) -> Facts:
        """Begin to run."""
        self._alive()
        if self._batches is not None:
            await beside.run(warm_up)
        if self._registry is not None:
            self._registry.engines[self._id] = self._held
        self._spawn(self._run())
        return self._facts

    async def generate(self, job: Job) -> AsyncIterator[Output]:
        """Run a job; see :class:`common.engine.interface.Engine`."""
        self._alive()
        check_job(job, self._facts)
        if finish := finish_of(job, list(job.generated), self._eos):
            yield Output((), finish)
            return
        sequence = Sequence(job, [*job.prompt, *job.generated])
        sequence.pull_first = job.hand_off is not None
        sequence.promise = Promise.of(terms_of(job, len(job.generated)), self._clock.now_s(), self._hop_s)
        outbox: asyncio.Queue[Output | EngineDead] = asyncio.Queue()
        self._outboxes[id(sequence)] = outbox
        self._core.add(sequence)
        self._changed()
        try:
            while True:
                item = await outbox.get()
                if isinstance(item, EngineDead):
                    raise item
                yield item
                if item.finish or item.hand_off:
                    return
        finally:
            del self._outboxes[id(sequence)]
            self._core.remove(sequence)
            self._drop_untaken(outbox)
            self._changed()

    async def release(self, hand_off: HandOff) -> None:
        """Free a hand-off's KV; one that is gone already is fine."""
        self._alive()
        self._held.drop(str(hand_off.kv.get("key")))

    async def introduce(self, peer: Mapping[str, Any]) -> None:  # noqa: ARG002 - the interface's
        """Nothing to do: simulated pulls cost the same from the first on."""
        self._alive()

    def address(self) -> Mapping[str, Any]:
        """The engine's name."""
        return {"engine": self._id, "fingerprint": self._facts.fingerprint}

    def load(self) -> Load:
        """Present load, exact."""
        self._alive()
        core = self._core
        return Load(
            running=len(core.running),
            running_tokens=sum(len(s.tokens) for s in core.running),
            waiting=len(core.waiting),
            waiting_tokens=sum(s.todo for s in core.waiting),
            free_blocks=core.free_blocks,
            step_ms=self._step_s * 1e3,
            latency=self.latency,
        )

    def busy_until_s(self) -> float:
        """See :class:`common.engine.interface.Engine`."""
        return self._busy_until_s

    def take_samples(self) -> list[StepSample]:
        """Iterations since the last call, the newest 4,096 of them."""
        taken = list(self._samples)
        self._samples.clear()
        return taken

    async def drain(self) -> None:
        """Return once no job runs and no hand-off waits to be pulled."""
        self._alive()
        await self._idle.wait()
        self._alive()

    async def close(self) -> None:
        """Stop; jobs that still run end with EngineDead."""
        self.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """Die as a crashed engine does: every job raises EngineDead, held KV is lost."""
        self._dead = True
        if self._registry is not None:
            self._registry.engines.pop(self._id, None)
        for outbox in self._outboxes.values():
            outbox.put_nowait(EngineDead("the simulated engine was killed"))
        for task in self._tasks:
            task.cancel()
        self._idle.set()

    async def _run(self) -> None:
        while True:
            self._held.expire(self._clock.now_s())
            grants, pulls = self._plan()
            for sequence in pulls:
                self._spawn(self._pull(sequence))
            if not grants:
                await self._wait()
                continue
            now_s = self._clock.now_s()
            for grant in grants:
                grant.sequence.notes.setdefault("scheduled_s", now_s)
            batch = batch_of(grants)
            self._step_s = self._speed.seconds(batch)
            self._samples.append(StepSample(**asdict(batch), seconds=self._step_s))
            self._busy_until_s = self._clock.now_s() + self._step_s
            await self._clock.sleep(self._step_s)
            for sequence in self._core.apply(grants, self._clock.now_s()):
                self._emit(sequence)
            self._changed()

    def _plan(self) -> tuple[list[Grant], list[Sequence]]:
        """What the next iteration computes, and whose KV is pulled from now on."""
        core = self._core
        if self._batches is None or not (core.waiting or any(one.todo > 1 for one in core.running)):
            pulls = core.pull_starts()
            return core.plan(), pulls
        return core.carry_out(*self._batches.form(core, self.latency, self._clock.now_s()))

    async def _wait(self) -> None:
        """Until work arrives, the next lease ends, or it is time to ask the batch policy again."""
        self._work.clear()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._work.wait())]
        next_s = self._held.next_expiry_s()
        if next_s is not None:
            tasks.append(asyncio.create_task(self._clock.sleep(next_s - self._clock.now_s())))
        if self._batches is not None and self._core.waiting:
            tasks.append(asyncio.create_task(self._clock.sleep(_POLL_S)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _emit(self, sequence: Sequence) -> None:
        token = self._next_token(sequence)
        sequence.tokens.append(token)
        if sequence.promise is not None:
            sequence.promise.advance((token,), self._clock.now_s())
        first = len(sequence.output) == len(sequence.job.generated) + 1
        finish = finish_of(sequence.job, sequence.output, self._eos)
        hand_off = None
        if finish is None and sequence.job.keep_kv:
            hand_off = self._hold(sequence)
        elif finish is not None:
            self._core.remove(sequence)
        outbox = self._outboxes.get(id(sequence))
        if outbox is not None:
            told = (dict(sequence.notes), tuple(sequence.chunks)) if first else ()
            outbox.put_nowait(Output((token,), finish, hand_off, *told))

    def _next_token(self, sequence: Sequence) -> int:
        seed = sequence.job.sampling.seed or 0
        tail = array("q", [*sequence.tokens[-4:], len(sequence.tokens), seed])
        span = self._facts.vocab_size - _FIRST_PLAIN_TOKEN
        return _FIRST_PLAIN_TOKEN + zlib.crc32(tail.tobytes()) % span

    def _hold(self, sequence: Sequence) -> HandOff:
        now_s = self._clock.now_s()
        expires_s = now_s + self._lease_s
        tokens = sequence.computed
        unshared_s = min(_UNSHARED_HOLD_S + self._pull_s(tokens), self._lease_s)
        hold_s = self._lease_s if self._registry is not None else unshared_s
        key = self._held.hold(self._core.keep(sequence), now_s + hold_s)
        kv = {"key": key, "fingerprint": self._facts.fingerprint}
        return HandOff(self._id, kv, tokens, now_s, expires_s)

    async def _pull(self, sequence: Sequence) -> None:
        hand_off = sequence.job.hand_off
        assert hand_off is not None
        now_s = self._clock.now_s()
        sequence.notes["scheduled_s"] = now_s
        usable = hand_off.expires_s > now_s and hand_off.kv.get("fingerprint") == self._facts.fingerprint
        if usable:
            pull_s = self._pull_s(hand_off.tokens)
            await self._clock.sleep(pull_s)
            key = str(hand_off.kv.get("key"))
            usable = self._registry is None or self._registry.fetch(hand_off.producer, key)
        if sequence.phase is not Phase.PULLING:
            return
        if usable:
            sequence.computed = min(hand_off.tokens, sequence.todo - 1)
            sequence.notes["kv_transfer_ms"] = pull_s * 1e3
            sequence.notes["kv_bytes"] = float(sequence.computed * self._token_bytes)
        else:
            sequence.notes["recomputed"] = 1.0
        sequence.phase = Phase.RUNNING
        self._changed()

    def _pull_s(self, tokens: int) -> float:
        return self.transfer_s + tokens * self._token_s

    def _drop_untaken(self, outbox: asyncio.Queue[Output | EngineDead]) -> None:
        """Free the KV of a hand-off that its job was cancelled before taking."""
        while not outbox.empty():
            item = outbox.get_nowait()
            if isinstance(item, Output) and item.hand_off is not None:
                self._held.drop(str(item.hand_off.kv["key"]))

    def _give_back(self, blocks: int) -> None:
        self._core.give_back(blocks)
        self._changed()

    def _changed(self) -> None:
        self._work.set()
        busy = self._core.waiting or self._core.running or self._held
        (self._idle.clear if busy and not self._dead else self._idle.set)()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.kill()

    def _alive(self) -> None:
        if self._dead:
            raise EngineDead("the simulated engine is dead")


def _facts(settings: Settings, total_blocks: int, machine: str) -> Facts:
    config: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((Path(settings.model) / "config.json").read_text())
    return Facts(
        fingerprint=f"simulated/{settings.model}/{settings.block_size}",
        model=settings.model,
        vocab_size=int(config.get("vocab_size", 2048)),
        max_model_len=settings.max_model_len or int(config.get("max_position_embeddings", 4096)),
        block_size=settings.block_size,
        total_blocks=total_blocks,
        max_seqs=settings.max_num_seqs,
        max_batch_tokens=settings.max_num_batched_tokens,
        machine=machine,
    )


__all__ = ["DEFAULT_LATENCY", "KvRegistry", "SimulatedEngine"]
