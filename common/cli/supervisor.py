"""Keeps child processes running: starts them in order, restarts what crashes, and drains them in reverse order."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.parent import CANNOT_RUN, ending_with_us

WRONG_USAGE = 2
"""Exit code of a child whose settings or arguments are wrong: starting it again can't help."""
_USELESS = {WRONG_USAGE: "wrong settings", CANNOT_RUN: "it can't be run"}

_READ_BYTES = 1 << 16
_PUMP_END_S = 2.0


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep running.

    Children of a higher ``stage`` start later and stop earlier. ``ready`` is awaited before the next stage starts.
    ``grace_s`` is how long the child may take to end after SIGTERM before it and all it has started are killed.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stage: int = 0
    grace_s: float = 10.0
    ready: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Backoff:
    """When a crashed child is started again, and when it is given up.

    A child that crashes ``max_failures`` times without having lived ``settled_s`` in between (or having been called
    settled) is given up.
    """

    first_s: float = 0.5
    longest_s: float = 30.0
    settled_s: float = 60.0
    max_failures: int = 5

    def delay_s(self, failures: int) -> float:
        """Pause before the start that follows this many failures in a row."""
        return min(self.longest_s, self.first_s * 2.0 ** (failures - 1))


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """What a child is doing: ``pid`` is None while it does not run."""

    name: str
    pid: int | None
    restarts: int


class ChildGaveUp(Exception):
    """A child can't be kept running; the message says which and how it ended."""


@dataclass(slots=True)
class _Kept:
    child: Child
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None
    restarts: int = 0
    failures: int = 0


class Supervisor:
    """Runs children until :meth:`close`; used by one event loop.

    ``output(name, line)`` gets each line that a child prints, ``event(text)`` what happens to children, and ``changed``
    the status of all whenever one starts or ends.
    """

    def __init__(
        self,
        children: Sequence[Child],
        output: Callable[[str, str], None],
        event: Callable[[str], None],
        changed: Callable[[Sequence[ChildStatus]], None] = lambda _: None,
        backoff: Backoff | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._kept = [_Kept(child) for child in children]
        self._output = output
        self._event = event
        self._changed = changed
        self._backoff = backoff or Backoff()
        self._cwd = cwd
        self._stopping = asyncio.Event()
        self._gave_up: asyncio.Future[str] | None = None

    def status(self) -> tuple[ChildStatus, ...]:
        """All children, in the order given."""
        return tuple(ChildStatus(kept.child.name, _pid(kept), kept.restarts) for kept in self._kept)

    async def start(self) -> None:
        """Start all children, stage by stage; raises ChildGaveUp if one of an awaited stage can't run."""
        self._gave_up = asyncio.get_running_loop().create_future()
        for stage in sorted({kept.child.stage for kept in self._kept}):
            members = [kept for kept in self._kept if kept.child.stage == stage]
            for kept in members:
                kept.keeper = asyncio.create_task(self._keep(kept), name=f"keep-{kept.child.name}")
            for kept in members:
                if kept.child.ready is not None:
                    await self._unless_given_up(asyncio.ensure_future(kept.child.ready()))

    async def wait(self, stop: asyncio.Event) -> None:
        """Return when ``stop`` is set; raises ChildGaveUp when a child is given up."""
        await self._unless_given_up(asyncio.ensure_future(stop.wait()))

    def settled(self) -> None:
        """Forget earlier failures: everything works now."""
        for kept in self._kept:
            kept.failures = 0

    async def close(self) -> None:
        """Drain the children, the last stage first, and kill what is still there after its grace."""
        self._stopping.set()
        for stage in sorted({kept.child.stage for kept in self._kept}, reverse=True):
            await asyncio.gather(*(self._stop(kept) for kept in self._kept if kept.child.stage == stage))

    def kill(self) -> None:
        """End everything at once, without a drain."""
        self._stopping.set()
        for kept in self._kept:
            if kept.process is not None:
                _kill_group(kept.process.pid)

    async def _unless_given_up(self, awaited: "asyncio.Future[Any]") -> None:
        assert self._gave_up is not None, "start() comes first"
        try:
            await asyncio.wait({awaited, self._gave_up}, return_when=asyncio.FIRST_COMPLETED)
            if self._gave_up.done():
                raise ChildGaveUp(self._gave_up.result())
            awaited.result()
        finally:
            awaited.cancel()

    async def _keep(self, kept: _Kept) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            begun = loop.time()
            code = await self._run_once(kept)
            if self._stopping.is_set():
                return
            settled = loop.time() - begun >= self._backoff.settled_s
            kept.failures = 1 if settled else kept.failures + 1
            if not self._try_again(kept, code):
                return
            kept.restarts += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._backoff.delay_s(kept.failures))

    def _try_again(self, kept: _Kept, code: int) -> bool:
        how = f"{kept.child.name} ended ({_exit_text(code)})"
        if code not in _USELESS and kept.failures < self._backoff.max_failures:
            self._event(f"{how}; starting it again in {self._backoff.delay_s(kept.failures):g} s")
            return True
        why = _USELESS.get(code, f"{kept.failures} times in a row")
        if self._gave_up is not None and not self._gave_up.done():
            self._gave_up.set_result(f"{how}: {why}; its last lines above say more")
        return False

    async def _run_once(self, kept: _Kept) -> int:
        """Run the child to its end; returns its exit code, negative for a signal."""
        reading, writing = os.pipe()  # ours, as asyncio's would keep wait() from returning while a grandchild lives
        pump = asyncio.create_task(self._pump(kept.child.name, reading))
        try:
            process = await self._spawn(kept.child, writing)
        except OSError as error:
            self._output(kept.child.name, str(error))
            return WRONG_USAGE
        finally:
            os.close(writing)
        kept.process = process
        self._changed(self.status())
        if self._stopping.is_set():
            process.terminate()
        code = await process.wait()
        _kill_group(process.pid)  # what the child had started and left behind
        _, unfinished = await asyncio.wait({pump}, timeout=_PUMP_END_S)
        if unfinished:
            pump.cancel()
            await asyncio.wait({pump})
        kept.process = None
        self._changed(self.status())
        return code

    async def _spawn(self, child: Child, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *ending_with_us(child.argv),
            env={**os.environ, "PYTHONUNBUFFERED": "1", **child.env},
            cwd=self._cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches only us, who stop the children in order
        )

    async def _pump(self, name: str, descriptor: int) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb", buffering=0)
        )
        rest = b""
        try:
            while chunk := await stream.read(_READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _READ_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._output(name, _text(line))
        finally:
            transport.close()
        if rest:
            self._output(name, _text(rest))

    async def _stop(self, kept: _Kept) -> None:
        if kept.keeper is None:
            return
        if kept.process is not None:
            with contextlib.suppress(ProcessLookupError):
                kept.process.terminate()
        _, late = await asyncio.wait({kept.keeper}, timeout=kept.child.grace_s)
        if late:
            self._event(f"{kept.child.name} did not end within {kept.child.grace_s:g} s: killed")
            if kept.process is not None:
                _kill_group(kept.process.pid)
            await asyncio.wait({kept.keeper})


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _pid(kept: _Kept) -> int | None:
    return None if kept.process is None else kept.process.pid


def _exit_text(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _text(line: bytes) -> str:
    """A line as it stands on a terminal: what a carriage return overwrites is left out."""
    return line.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1]
