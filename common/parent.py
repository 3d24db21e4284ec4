"""Runs a command that gets SIGTERM when the thread that started it ends (on Linux), so best start it from the main one.

The kernel is asked by a program of its own, just before it becomes the command. Asking between fork and exec runs
Python in a copy of a process whose threads are gone: one with a gRPC server in it aborted there.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

CANNOT_RUN = 127
"""Exit code where the command can't be run, as a shell's."""

_PR_SET_PDEATHSIG = 1


def ending_with_us(argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` under the same process number; to be started by this process."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def main() -> None:
    """Ask, then become the command; exits with :data:`CANNOT_RUN` where that fails."""
    parent, *argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it has ended already
        sys.exit(1)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - the caller's own command, and no shell
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(CANNOT_RUN)


if __name__ == "__main__":
    main()
