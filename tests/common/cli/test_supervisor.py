import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from common.cli.supervisor import Backoff, Child, ChildGaveUp, ChildStatus, Supervisor

QUICK = Backoff(first_s=0.01, longest_s=0.02, max_failures=3)
FOREVER = """
import signal, sys, threading
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
print("started", flush=True)
stop.wait()
print("drained", flush=True)
"""
STUBBORN = (
    'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print("started", flush=True); time.sleep(600)'
)


@dataclass
class Log:
    lines: list[tuple[str, str]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    statuses: list[Sequence[ChildStatus]] = field(default_factory=list)
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    def output(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self.grown.set()

    async def until(self, *wanted: tuple[str, str], times: int = 1) -> None:
        while any(self.lines.count(line) < times for line in wanted):
            self.grown.clear()
            await self.grown.wait()


@asynccontextmanager
async def supervised(*children: Child, backoff: Backoff = QUICK) -> AsyncIterator[tuple[Supervisor, Log]]:
    log = Log()
    supervisor = Supervisor(children, log.output, log.events.append, log.statuses.append, backoff)
    try:
        await supervisor.start()
        yield supervisor, log
    finally:
        await supervisor.close()


def python(name: str, code: str, stage: int = 0, grace_s: float = 20.0, **env: str) -> Child:
    return Child(name, (sys.executable, "-c", code), env, stage, grace_s)


def pid_of(supervisor: Supervisor, name: str) -> int:
    (pid,) = (status.pid for status in supervisor.status() if status.name == name)
    assert pid is not None
    return pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


async def gone(pid: int) -> None:
    while is_alive(pid):
        await asyncio.sleep(0.01)


async def test_a_child_s_lines_come_with_its_name_and_its_environment() -> None:
    code = "import os; print(os.environ['WORD']); print('a\\rb'); print('tail', end='')"
    async with supervised(python("a", code + "; import time; time.sleep(600)", WORD="hello"), python("b", FOREVER)) as (
        _,
        log,
    ):
        await log.until(("a", "hello"), ("a", "b"), ("b", "started"))


async def test_the_rest_of_an_unfinished_line_is_not_lost() -> None:
    async with supervised(python("a", "print('no end', end='')")) as (_, log):
        await log.until(("a", "no end"))


async def test_a_line_of_any_length_passes() -> None:
    async with supervised(python("a", "print('x' * 300_000)")) as (_, log):
        while sum(line.count("x") for _, line in log.lines) < 300_000:
            await asyncio.sleep(0.01)


async def test_children_drain_in_the_reverse_order_of_their_start() -> None:
    async with supervised(python("first", FOREVER, 0), python("second", FOREVER, 1), python("third", FOREVER, 2)) as (
        _,
        log,
    ):
        await log.until(*((name, "started") for name in ("first", "second", "third")))
    assert [name for name, line in log.lines if line == "drained"] == ["third", "second", "first"]


async def test_a_stage_waits_until_the_one_before_it_is_ready() -> None:
    allowed = asyncio.Event()
    waiting = Child("first", (sys.executable, "-c", FOREVER), stage=0, ready=lambda: wait_for(allowed))
    log = Log()
    supervisor = Supervisor((waiting, python("second", FOREVER, 1)), log.output, log.events.append)
    starting = asyncio.create_task(supervisor.start())
    await log.until(("first", "started"))
    assert [status.pid is None for status in supervisor.status()] == [False, True]
    allowed.set()
    await log.until(("second", "started"))
    await starting
    await supervisor.close()


async def wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_killed_child_is_started_again_and_reported() -> None:
    async with supervised(python("a", FOREVER)) as (supervisor, log):
        await log.until(("a", "started"))
        os.kill(pid_of(supervisor, "a"), signal.SIGKILL)
        await log.until(("a", "started"), times=2)
        assert supervisor.status()[0].restarts == 1
        assert "a ended (SIGKILL); starting it again in 0.01 s" in log.events


async def test_a_child_that_keeps_crashing_is_given_up_with_its_name_and_exit_code() -> None:
    async with supervised(python("good", FOREVER), python("bad", "raise SystemExit(7)")) as (supervisor, log):
        with pytest.raises(ChildGaveUp, match=r"bad ended \(exit code 7\): 3 times in a row"):
            await supervisor.wait(asyncio.Event())
        await log.until(("good", "started"))
        assert len(log.events) == 2


async def test_wrong_settings_are_not_tried_again() -> None:
    async with supervised(python("bad", "raise SystemExit(2)")) as (supervisor, log):
        with pytest.raises(ChildGaveUp, match="wrong settings"):
            await supervisor.wait(asyncio.Event())
        assert log.events == []


async def test_a_program_that_does_not_exist_is_given_up_at_once() -> None:
    async with supervised(Child("missing", ("/no/such/program",))) as (supervisor, _):
        with pytest.raises(ChildGaveUp, match="it can't be run"):
            await supervisor.wait(asyncio.Event())


async def test_failures_are_forgotten_once_everything_has_settled() -> None:
    async with supervised(python("a", FOREVER)) as (supervisor, log):
        for start in range(1, 6):
            await log.until(("a", "started"), times=start)
            supervisor.settled()
            os.kill(pid_of(supervisor, "a"), signal.SIGKILL)
        await log.until(("a", "started"), times=6)
        assert supervisor.status()[0].restarts == 5


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    async with supervised(python("a", STUBBORN, grace_s=0.05)) as (supervisor, log):
        await log.until(("a", "started"))
        pid = pid_of(supervisor, "a")
    assert not is_alive(pid)
    assert log.events == ["a did not end within 0.05 s: killed"]


async def test_what_a_crashed_child_had_started_dies_with_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    async with supervised(python("a", code)) as (supervisor, log):
        while not log.lines:
            await asyncio.sleep(0.01)
        os.kill(pid_of(supervisor, "a"), signal.SIGKILL)
        await gone(int(log.lines[0][1]))


async def test_a_stop_during_the_pause_before_a_restart_ends_at_once() -> None:
    slow = Backoff(first_s=600, longest_s=600)
    async with supervised(python("a", "raise SystemExit(1)"), backoff=slow) as (_, log):
        while not log.events:
            await asyncio.sleep(0.01)


async def test_everything_can_be_killed_without_a_drain() -> None:
    async with supervised(python("a", STUBBORN, grace_s=600)) as (supervisor, log):
        await log.until(("a", "started"))
        supervisor.kill()


async def test_waiting_ends_when_told_to_stop() -> None:
    async with supervised(python("a", FOREVER)) as (supervisor, _):
        stop = asyncio.Event()
        stop.set()
        await supervisor.wait(stop)


async def test_every_start_and_end_is_told() -> None:
    async with supervised(python("a", FOREVER)) as (supervisor, log):
        await log.until(("a", "started"))
        pid = pid_of(supervisor, "a")
    assert log.statuses[0] == (ChildStatus("a", pid, 0),)
    assert log.statuses[-1] == (ChildStatus("a", None, 0),)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
async def test_children_do_not_outlive_a_supervisor_that_was_killed() -> None:
    code = (
        "import asyncio, sys\n"
        "from common.cli.supervisor import Child, Supervisor\n"
        "async def main():\n"
        "    child = Child('a', (sys.executable, '-c', 'import time; time.sleep(600)'))\n"
        "    supervisor = Supervisor((child,), lambda *_: None, print, lambda s: print(s[0].pid, flush=True))\n"
        "    await supervisor.start()\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    process.kill()
    await process.wait()
    await gone(pid)
