"""Files of offline batches: chunked lists in Redis, bounded by size, quota and retention, seen by their tenant only."""

import contextlib
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from common.codec import decode, encode, message
from common.errors import BusError, SlosError
from common.keys import Keys
from common.offline.store import Client, page, redis_call
from common.settings import Settings

CHUNK_BYTES = 256 * 1024
UPLOAD_S = 3600
"""Chunks of an upload that was never completed vanish after this."""

BATCH_INPUT = "batch"
BATCH_OUTPUT = "batch_output"

_COMMIT = """
local used = tonumber(redis.call('HGET', KEYS[4], ARGV[2]) or '0')
if ARGV[4] ~= '' and used + tonumber(ARGV[3]) > tonumber(ARGV[4]) then
  redis.call('DEL', KEYS[2])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[6])
redis.call('PEXPIREAT', KEYS[2], ARGV[6])
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[7])
redis.call('HINCRBY', KEYS[4], ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[5], ARGV[6], ARGV[8])
return 1
"""

_FORGET = """
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('ZREM', KEYS[5], ARGV[4]) == 0 then return 0 end
if redis.call('HINCRBY', KEYS[4], ARGV[2], -tonumber(ARGV[3])) <= 0 then redis.call('HDEL', KEYS[4], ARGV[2]) end
return 1
"""


class FileTooLarge(SlosError):
    """An upload is over the bound; nothing of it was kept."""


class QuotaExceeded(SlosError):
    """An upload would take its tenant over the quota; nothing of it was kept."""


class FileGone(SlosError):
    """A file was deleted or expired while it was read."""


@message
@dataclass(frozen=True, slots=True)
class StoredFile:
    """What is known about a complete file."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_s: float
    expires_s: float


class FileStore:
    """Files by tenant. Every verb raises BusUnavailable without a connection and BusFull when Redis is full."""

    def __init__(self, redis: Client, keys: Keys, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._keys = keys
        self._settings = settings
        self._clock = clock

    async def upload(self, tenant: str, filename: str, purpose: str, content: AsyncIterable[bytes]) -> StoredFile:
        """Keep a client's file; raises FileTooLarge and QuotaExceeded."""
        file_id = f"file-{uuid.uuid4().hex}"
        return await self._put(file_id, tenant, filename, purpose, content, self._settings.max_file_bytes, True)

    async def write(self, file_id: str, tenant: str, filename: str, content: AsyncIterable[bytes]) -> StoredFile:
        """Keep a batch's result under a known id, in place of an earlier try; counts in the quota, never refused."""
        await self.delete(tenant, file_id)
        return await self._put(file_id, tenant, filename, BATCH_OUTPUT, content, None, False)

    async def get(self, tenant: str, file_id: str) -> StoredFile | None:
        """A file of this tenant, None for any other."""
        async with redis_call():
            raw = await self._redis.get(self._keys.file(file_id))
        file = None if raw is None else decode(raw, StoredFile)
        return file if file is not None and file.tenant == tenant else None

    async def list(
        self, tenant: str, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> Sequence[StoredFile] | None:
        """Up to ``limit`` files behind the id ``after``; None if there is no such file."""
        found: list[StoredFile] = []
        while len(found) < limit:
            async with redis_call():
                ids = await page(self._redis, self._keys.files(tenant), after, limit, newest_first)
                if not ids:
                    return None if ids is None else found
                raws = await self._redis.mget([self._keys.file(file_id) for file_id in ids])
            files = [decode(raw, StoredFile) for raw in raws if raw is not None]
            found += [file for file in files if purpose in (None, file.purpose)]
            after = ids[-1]
        return found[:limit]

    async def delete(self, tenant: str, file_id: str) -> bool:
        """Forget a file; False if this tenant has none of this id."""
        file = await self.get(tenant, file_id)
        return file is not None and await self._forget(file.id, tenant, file.bytes)

    async def read(self, file: StoredFile) -> AsyncIterator[bytes]:
        """The content in chunks; raises FileGone when it vanishes meanwhile."""
        for index in range(-(-file.bytes // CHUNK_BYTES)):
            async with redis_call():
                chunk = await self._redis.lindex(self._keys.file_data(file.id), index)
            if chunk is None:
                raise FileGone(file.id)
            yield chunk

    async def lines(self, file: StoredFile) -> AsyncIterator[tuple[int, bytes]]:
        """Lines that are not blank, each with its number from 1; raises FileGone."""
        rest, number = bytearray(), 0
        async for chunk in self.read(file):
            rest += chunk
            if b"\n" not in chunk:
                continue
            *whole, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in whole:
                number += 1
                if line.strip():
                    yield number, line
        if rest.strip():
            yield number + 1, bytes(rest)

    async def sweep(self, count: int = 1000) -> int:
        """Forget up to ``count`` expired files; returns how many. For background work."""
        now_ms = int(self._clock() * 1000)
        async with redis_call():
            members = await self._redis.zrange(self._keys.file_ends, 0, now_ms, byscore=True, offset=0, num=count)
        for member in members:
            file_id, size, tenant = member.decode().split("|", 2)
            await self._forget(file_id, tenant, int(size))
        return len(members)

    async def _put(
        self,
        file_id: str,
        tenant: str,
        filename: str,
        purpose: str,
        content: AsyncIterable[bytes],
        limit_bytes: int | None,
        in_quota: bool,
    ) -> StoredFile:
        try:
            size = await self._append(file_id, content, limit_bytes)
            now_s = self._clock()
            expires_s = now_s + self._settings.file_retention_s
            file = StoredFile(file_id, tenant, filename, purpose, size, now_s, expires_s)
            quota = str(self._settings.file_quota_bytes) if in_quota else ""
            async with redis_call():
                kept = await self._redis.eval(
                    _COMMIT,
                    5,
                    *self._names(file_id, tenant),
                    *(encode(file), tenant, size, quota, now_s, int(expires_s * 1000), file_id),
                    _ends_member(file_id, size, tenant),
                )
        except BaseException:
            with contextlib.suppress(BusError):  # it expires by itself
                async with redis_call():
                    await self._redis.delete(self._keys.file_data(file_id))
            raise
        if not kept:
            raise QuotaExceeded(f"over the quota of {self._settings.file_quota_bytes} bytes")
        return file

    async def _append(self, file_id: str, content: AsyncIterable[bytes], limit_bytes: int | None) -> int:
        key, size, rest = self._keys.file_data(file_id), 0, bytearray()
        async with redis_call():
            await self._redis.delete(key)
        async for part in content:
            size += len(part)
            if limit_bytes is not None and size > limit_bytes:
                raise FileTooLarge(f"over the bound of {limit_bytes} bytes")
            rest += part
            while len(rest) >= CHUNK_BYTES:
                await self._push(key, bytes(rest[:CHUNK_BYTES]))
                del rest[:CHUNK_BYTES]
        if rest:
            await self._push(key, bytes(rest))
        return size

    async def _push(self, key: str, chunk: bytes) -> None:
        async with redis_call(), self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key, chunk)
            pipe.expire(key, UPLOAD_S)
            await pipe.execute()

    async def _forget(self, file_id: str, tenant: str, size: int) -> bool:
        member = _ends_member(file_id, size, tenant)
        async with redis_call():
            names = self._names(file_id, tenant)
            done = await self._redis.eval(_FORGET, 5, *names, file_id, tenant, size, member)
        return bool(done)

    def _names(self, file_id: str, tenant: str) -> tuple[str, ...]:
        keys = self._keys
        return keys.file(file_id), keys.file_data(file_id), keys.files(tenant), keys.file_bytes, keys.file_ends


def _ends_member(file_id: str, size: int, tenant: str) -> str:
    return f"{file_id}|{size}|{tenant}"
