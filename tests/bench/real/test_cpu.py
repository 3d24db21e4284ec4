import os
import subprocess
import sys

from bench.real.cpu import Usage, keep_engine_to, usage
from bench.real.machine import busy

BURN = "import time, sys\nwhile time.process_time() < 0.1: pass\nprint(flush=True); sys.stdin.read()"


def test_a_child_counts_for_its_parent_unless_it_has_a_name_itself() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone = usage({"child": child.pid}).outside_s["child"]
        apart = usage({"me": os.getpid(), "child": child.pid}).outside_s
        together = usage({"me": os.getpid()}).outside_s["me"]
    assert alone >= 0.05  # ticks are 10 ms
    assert apart["child"] >= alone
    assert together >= apart["me"] + apart["child"]


def test_only_engines_among_the_descendants_are_kept_to_cpus() -> None:
    """``comm`` is what vLLM sets for its engine processes."""
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, sys.argv[1].encode())"
    script = f"import subprocess, sys, threading\n{rename}\nthreading.Thread(target=input).start()\nprint(flush=True)"
    first = {min(os.sched_getaffinity(0))}
    with (
        subprocess.Popen([sys.executable, "-c", script, "VLLM::EngineCore"], stdin=-1, stdout=-1) as engine,
        subprocess.Popen([sys.executable, "-c", script, "server"], stdin=-1, stdout=-1) as other,
    ):
        for child in (engine, other):
            assert child.stdout is not None
            child.stdout.readline()
        keep_engine_to(os.getpid(), first)
        threads = [int(thread) for thread in os.listdir(f"/proc/{engine.pid}/task")]
        assert len(threads) == 2
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset(first)}
        assert os.sched_getaffinity(other.pid) == os.sched_getaffinity(0)
        engine.communicate(b"\n")
        other.communicate(b"\n")


def test_what_was_used_in_between_is_a_difference() -> None:
    before, after = Usage({"api": 1.0}, 2.0), Usage({"api": 1.5, "redis": 0.25}, 5.0)
    assert after.since(before) == Usage({"api": 0.5, "redis": 0.25}, 3.0)
    assert after.total_outside_s == 1.75


def test_a_process_that_has_ended_costs_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert usage({"gone": child.pid}).total_outside_s == 0.0


def test_the_machine_counts_up() -> None:
    assert busy().since(busy()).used_s <= 0.0
