"""A command that ends with the process that started it."""

import subprocess
import sys
import time

from common.parent import CANNOT_RUN, ending_with_us

PARENT = """
import subprocess, sys, time
from common.parent import ending_with_us
child = subprocess.Popen(ending_with_us([sys.executable, "-c", "import time; time.sleep(60)"]))
print(child.pid, flush=True)
time.sleep(60)
"""


def test_it_is_the_command_itself_with_its_output_and_exit_code() -> None:
    argv = [sys.executable, "-c", "import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(3)", "a b", "-x"]
    with subprocess.Popen(ending_with_us(argv), stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=30)
    assert output.strip() == f"{process.pid} ['a b', '-x']"
    assert process.returncode == 3


def test_what_can_not_be_run_says_so() -> None:
    done = subprocess.run(
        ending_with_us(["/nowhere/at-all"]), stderr=subprocess.PIPE, text=True, timeout=30, check=False
    )
    assert done.returncode == CANNOT_RUN == 127
    assert done.stderr == "/nowhere/at-all: No such file or directory\n"


def test_a_killed_parent_takes_it_along() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline_s = time.monotonic() + 10
        while command(child).count(b"sleep") == 0 or b"parent.py" in command(child):  # it has become the command
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        parent.kill()
    deadline_s = time.monotonic() + 10
    while command(child):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def command(process: int) -> bytes:
    """The command line of a process, empty once it has ended."""
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
