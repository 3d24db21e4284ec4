"""Batches in tests: stores on a test's Redis, inputs, and what came out."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.keys import Keys
from common.offline.batch import Batch, BatchSpec
from common.offline.batches import BatchStore
from common.offline.files import FileStore
from common.offline.store import Client, connect
from common.settings import Settings

MODEL = Path(__file__).parents[3] / "bench" / "tiny_model" / "target"
COMPLETIONS: Literal["/v1/completions"] = "/v1/completions"
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
WAIT_S = 30.0


@dataclass(frozen=True)
class Stores:
    """What the api writes and a worker reads."""

    redis: Client
    settings: Settings
    files: FileStore
    batches: BatchStore

    async def create(self, content: bytes, endpoint: str = COMPLETIONS, window_s: float = 3600.0) -> Batch:
        """A new batch of this input."""

        async def pieces() -> AsyncIterator[bytes]:
            yield content

        file = await self.files.upload("ada", "in.jsonl", "batch", pieces())
        now_s = time.time()
        batch_id = f"batch_{uuid.uuid4().hex}"
        spec = BatchSpec(batch_id, "ada", file.id, endpoint, "1h", now_s, now_s + window_s)
        return await self.batches.create(spec)

    async def load(self, batch: Batch) -> Batch:
        found = await self.batches.load(batch.spec.id)
        assert found is not None
        return found

    async def ended(self, batch: Batch) -> Batch:
        async with asyncio.timeout(WAIT_S):
            while not (found := await self.load(batch)).status.ended:
                await asyncio.sleep(0.02)
        return found

    async def entries(self, file_id: str | None) -> list[dict[str, Any]]:
        """What stands in a result file, empty if there is none."""
        if file_id is None:
            return []
        file = await self.files.get("ada", file_id)
        assert file is not None
        content = b"".join([chunk async for chunk in self.files.read(file)])
        return [json.loads(line) for line in content.splitlines()]


def open_stores(settings: Settings) -> Stores:
    redis, keys = connect(settings), Keys(settings.namespace)
    return Stores(redis, settings, FileStore(redis, keys, settings), BatchStore(redis, keys, settings))


def make_input(*bodies: dict[str, Any], endpoint: str = COMPLETIONS) -> bytes:
    """One line for each body, named line-1 and on."""
    lines = (
        {"custom_id": f"line-{number}", "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies, 1)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
