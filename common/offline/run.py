"""What one run of a batch works with, and what it does with each line's end."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from common.bus.interface import IngressBus
from common.messages import Record, Request
from common.offline.batch import Batch, BatchSpec, Fault
from common.offline.batches import BatchStore
from common.offline.files import FileStore, StoredFile
from common.offline.lines import BadLine, Line, error_entry, parse_line, response_entry
from common.settings import Settings


class LineRefused(Exception):
    """The endpoint would refuse this body; carries its HTTP status and body."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(str(status))
        self.status = status
        self.body = body


class Call(Protocol):
    """One line on its way: what is submitted, and how its record becomes a response."""

    @property
    def request(self) -> Request:
        """What goes into the pipeline."""

    @property
    def max_queued(self) -> int:
        """Bound of its tier's queue."""

    def stopped(self, record: Record) -> bool:
        """Whether the text so far holds a stop string, which only the one who reads the text can know."""

    def response(self, record: Record) -> tuple[int, Mapping[str, Any]]:
        """HTTP status and body for a record that has ended."""


class Endpoint(Protocol):
    """The api's own code for bodies and responses."""

    async def call(self, spec: BatchSpec, request_id: str, body: bytes) -> Call:
        """Prepare one line; raises LineRefused."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run works with. ``stopping`` turns true when the process is to end."""

    batches: BatchStore
    files: FileStore
    bus: IngressBus
    endpoint: Endpoint
    settings: Settings
    stopping: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.time


@dataclass(frozen=True, slots=True)
class Run:
    """The one run that holds the lock of a batch, by its fencing token. What it writes may raise LockLost."""

    batch: Batch
    fence: int
    tools: Tools

    @property
    def spec(self) -> BatchSpec:
        """What was asked for."""
        return self.batch.spec

    async def open_lines(self, file: StoredFile) -> AsyncIterator[tuple[int, Line]]:
        """Lines without a result, in order."""
        batches = self.tools.batches
        done = {*await batches.lines(self.spec.id, True), *await batches.lines(self.spec.id, False)}
        async for number, raw in self.tools.files.lines(file):
            if number not in done:
                line = parse_line(raw, self.spec.endpoint, self.tools.settings.max_body_bytes)
                if isinstance(line, Line):
                    yield number, line

    async def settle(self, number: int, line: Line, call: Call, record: Record | None) -> None:
        """Keep the response of a line that has ended."""
        if record is None:
            await self.refuse(number, line, "result_lost", "The line ran, but its record is past its retention.")
        else:
            await self.respond(number, line, *call.response(record))

    async def respond(self, number: int, line: Line, status: int, body: Mapping[str, Any]) -> None:
        """Keep a response, good or bad."""
        await self.keep(number, response_entry(self.spec, number, line.custom_id, status, body), ok=status < 400)

    async def refuse(self, number: int, line: Line, code: str, message: str) -> None:
        """Keep the error of a line that gets no response."""
        await self.keep(number, error_entry(self.spec, number, BadLine(line.custom_id, code, message)), ok=False)

    async def keep(self, number: int, entry: bytes, ok: bool) -> None:
        """Keep what goes into the output or error file."""
        await self.tools.batches.write_line(self.spec.id, self.fence, number, entry, ok)

    async def give_up(self, fault: Fault) -> None:
        """End the batch as failed."""
        await self.tools.batches.fail(self.spec.id, fault, self.fence)
