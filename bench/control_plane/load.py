"""An open-loop client that costs little: requests prepared before, answers looked at only where they must be."""

import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

_DECIDED = re.compile(rb'"decided_s":([0-9.e+]+)[,}]')
_MADE = re.compile(rb'"time_s":([0-9.e+]+)[,}]')
_COUNT = re.compile(rb'"completion_tokens":([0-9]+)')
_LENGTH = re.compile(rb"content-length: ([0-9]+)", re.IGNORECASE)
_TOKEN, _LAST = b"event: token", b"\r\n0\r\n\r\n"
PREPARED = 64
_SPIN_S = 0.001


@dataclass(slots=True)
class Answer:
    """One request as its client saw it, in epoch seconds; ``error`` is empty if all of it came."""

    due_s: float
    replica: int
    sent_s: float = 0.0
    decided_s: float | None = None
    made_s: float | None = None
    first_s: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    error: str = ""

    @property
    def delay_s(self) -> float | None:
        """From sending to the planner's decision."""
        return None if self.decided_s is None else self.decided_s - self.sent_s

    @property
    def relay_s(self) -> float | None:
        """From the engine's first token to the client."""
        return None if self.made_s is None or self.first_s is None else self.first_s - self.made_s


@dataclass(frozen=True, slots=True)
class Shape:
    """What is sent: prompts of random tokens, in turn in these tiers."""

    prompt_tokens: int = 128
    output_tokens: int = 40
    tiers: Sequence[str] = ("chat", "code", "summarize")

    def bodies(self, seed: int) -> list[bytes]:
        """Some requests; a run sends them in turn."""
        draw = random.Random(seed)
        found = []
        for number in range(PREPARED):
            body = {
                "prompt_token_ids": [draw.randrange(16, 2000) for _ in range(self.prompt_tokens)],
                "max_tokens": self.output_tokens,
                "tier": self.tiers[number % len(self.tiers)],
                "ignore_eos": True,
                "stream": True,
            }
            found.append(json.dumps(body, separators=(",", ":")).encode())
        return found


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; carries one request at a time and goes back to its pool after it."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._seen = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def send(self, head_and_body: bytes, answer: Answer) -> None:
        """Send now."""
        assert self._transport is not None
        self._answer = answer
        self._seen.clear()
        answer.sent_s = time.time()
        self._transport.write(head_and_body)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        answer = self._answer
        if answer is None:
            return
        self._seen += data
        if answer.first_s is None:
            self._begin(answer)
        if self._seen.endswith(_LAST):
            self._end(answer)
        elif not self._seen.startswith(b"HTTP/1.1 200"):
            self._refused(answer)

    def _begin(self, answer: Answer) -> None:
        if answer.decided_s is None and (found := _DECIDED.search(self._seen)):
            answer.decided_s = float(found[1])
        at = self._seen.find(_TOKEN)
        if at >= 0 and (made := _MADE.search(self._seen, at)):
            answer.first_s, answer.made_s = time.time(), float(made[1])

    def _end(self, answer: Answer) -> None:
        count = _COUNT.search(self._seen, max(0, len(self._seen) - 2000))
        answer.tokens = int(count[1]) if count else 0
        if b"event: done" not in self._seen[-4000:]:
            answer.error = "ended without done"
        self._finish(answer)

    def _refused(self, answer: Answer) -> None:
        head, _, body = self._seen.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length and len(body) >= int(length[1]):
            answer.error = (
                head.split(b"\r\n", 1)[0].decode(errors="replace") + " " + body[:200].decode(errors="replace")
            )
            self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        answer.ended_s = time.time()
        self._answer = None
        self._pool.back(self)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        if self._answer is not None:
            self._answer.error = f"connection lost: {error}"
            self._answer.ended_s = time.time()
            self._answer = None
            self._pool.lost()
        else:
            self._pool.forget(self)

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()


class Pool:
    """Connections to one api replica."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        self._idle: list[Connection] = []
        self._empty = asyncio.Event()
        self.busy = 0

    def request(self, body: bytes) -> bytes:
        """What goes over the wire for this body."""
        head = f"POST /generate HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def open(self, count: int) -> None:
        """Have at least so many idle connections."""
        while len(self._idle) < count:
            self._idle.append(await self._connect())

    async def send(self, wire: bytes, answer: Answer) -> None:
        """Send on an idle connection, or a new one."""
        self.busy += 1
        connection = self._idle.pop() if self._idle else await self._connect()
        connection.send(wire, answer)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
        return connection

    def back(self, connection: Connection) -> None:
        """Its answer has ended."""
        self._idle.append(connection)
        self.lost()

    def lost(self) -> None:
        """One request less is out."""
        self.busy -= 1

    def forget(self, connection: Connection) -> None:
        """The server has closed an idle connection."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close all that is idle."""
        for connection in list(self._idle):
            connection.close()


@dataclass(slots=True)
class Client:
    """Sends at random times (Poisson) to all replicas in turn, whatever comes back."""

    pools: Sequence[Pool]
    shape: Shape
    seed: int = 1
    _wires: list[list[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        bodies = self.shape.bodies(self.seed)
        self._wires = [[pool.request(body) for body in bodies] for pool in self.pools]

    async def run(self, rate: float, seconds: float, drain_s: float) -> list[Answer]:
        """Send for so long, then wait for what is out, at most ``drain_s``; unfinished answers have no end."""
        draw = random.Random(self.seed)
        answers: list[Answer] = []
        start_s = due_s = time.time()
        while (due_s := due_s + draw.expovariate(rate)) < start_s + seconds:
            wait_s = due_s - time.time()
            if wait_s > _SPIN_S or len(answers) % 16 == 0:
                await asyncio.sleep(max(0.0, wait_s))
            replica = len(answers) % len(self.pools)
            answer = Answer(due_s, replica)
            answers.append(answer)
            await self.pools[replica].send(self._wires[replica][(len(answers) // len(self.pools)) % PREPARED], answer)
        until_s = time.time() + drain_s
        while any(pool.busy for pool in self.pools) and time.time() < until_s:
            await asyncio.sleep(0.02)
        return answers
