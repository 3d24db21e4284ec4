"""Offline batches in Redis: status by compare-and-set, results by line, one fenced lock per batch.

Every write of a run carries the fencing token of its lock, and a script refuses it once another run has the lock.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from common.codec import decode, encode
from common.errors import SlosError
from common.keys import Keys
from common.offline.batch import Batch, BatchSpec, Fault, Status
from common.offline.store import Client, page, redis_call
from common.settings import Settings

_ACQUIRE = """
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('EXISTS', KEYS[3]) == 0 then return false end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
redis.call('HINCRBY', KEYS[3], 'starts', 1)
redis.call('HSET', KEYS[3], 'beat', ARGV[2])
return token
"""

_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], 'beat', ARGV[3])
return 1
"""

_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] == '1' then redis.call('HSET', KEYS[2], 'starts', 0) end
return 1
"""

_WRITE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3])
return 1
"""

_MOVE = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return -1 end
local status = redis.call('HGET', KEYS[1], 'status')
if not status or not string.find(ARGV[2], '|' .. status .. '|', 1, true) then return 0 end
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'at_' .. ARGV[3], ARGV[4], unpack(ARGV, 7))
if ARGV[5] == '1' then
  redis.call('SREM', KEYS[3], ARGV[6])
  redis.call('HSET', KEYS[1], 'completed', redis.call('HLEN', KEYS[4]), 'failed', redis.call('HLEN', KEYS[5]))
  redis.call('DEL', KEYS[4], KEYS[5])
end
return 1
"""

_STATUS = "at_"


class LockLost(SlosError):
    """Another run works on the batch: this one must stop and write nothing."""


class BatchStore:
    """Batches by tenant, and the verbs of a run. All raise BusUnavailable without a connection and BusFull."""

    def __init__(self, redis: Client, keys: Keys, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._keys = keys
        self._settings = settings
        self._clock = clock

    async def create(self, spec: BatchSpec) -> Batch:
        """Store a new batch; it stays open, and is resumed after any death, until it ends."""
        keys, now_s = self._keys, self._clock()
        async with redis_call(), self._redis.pipeline(transaction=True) as pipe:
            fields = {"spec": encode(spec), "status": "validating", "at_validating": repr(now_s)}
            pipe.hset(keys.batch(spec.id), mapping=fields)
            pipe.zadd(keys.batches(spec.tenant), {spec.id: spec.created_s})
            pipe.sadd(keys.open_batches, spec.id)
            ends_s = spec.expires_s + self._settings.file_retention_s
            pipe.zadd(keys.batch_ends, {f"{spec.id}|{spec.tenant}": ends_s})
            await pipe.execute()
        batch = await self.load(spec.id)
        assert batch is not None
        return batch

    async def get(self, tenant: str, batch_id: str) -> Batch | None:
        """A batch of this tenant, None for any other."""
        batch = await self.load(batch_id)
        return batch if batch is not None and batch.spec.tenant == tenant else None

    async def load(self, batch_id: str) -> Batch | None:
        """A batch of any tenant, for background work."""
        keys = self._keys
        async with redis_call(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.batch(batch_id))
            pipe.hlen(keys.batch_output(batch_id))
            pipe.hlen(keys.batch_errors(batch_id))
            fields, completed, failed = await pipe.execute()
        return _batch({key.decode(): value for key, value in fields.items()}, completed, failed) if fields else None

    async def list(self, tenant: str, after: str | None, limit: int) -> Sequence[Batch] | None:
        """Up to ``limit`` batches, newest first, behind the id ``after``; None if there is no such batch."""
        async with redis_call():
            ids = await page(self._redis, self._keys.batches(tenant), after, limit, newest_first=True)
        if ids is None:
            return None
        found = [await self.load(batch_id) for batch_id in ids]
        return [batch for batch in found if batch is not None]

    async def open(self) -> Sequence[str]:
        """Ids of batches that have not ended."""
        async with redis_call():
            return sorted(member.decode() for member in await self._redis.smembers(self._keys.open_batches))

    async def move(
        self,
        batch_id: str,
        expected: Collection[Status],
        status: Status,
        fence: int | None = None,
        fields: Mapping[str, str | bytes | int] | None = None,
    ) -> bool:
        """Change the status if it is one of ``expected``; a run passes its ``fence``. Raises LockLost."""
        keys = self._keys
        results = (keys.batch_output(batch_id), keys.batch_errors(batch_id))
        names = (keys.batch(batch_id), keys.batch_lock(batch_id), keys.open_batches, *results)
        pairs = [part for pair in (fields or {}).items() for part in pair]
        wanted = "|" + "|".join(expected) + "|"
        token = "" if fence is None else str(fence)
        arguments = (token, wanted, status.value, repr(self._clock()), int(status.ended), batch_id, *pairs)
        async with redis_call():
            done = await self._redis.eval(_MOVE, 5, *names, *arguments)
        if done == -1:
            raise LockLost(batch_id)
        return bool(done)

    async def fail(self, batch_id: str, fault: Fault, fence: int) -> None:
        """End a batch that can't run; what it has so far is dropped. Raises LockLost."""
        still = [status for status in Status if not status.ended]
        await self.move(batch_id, still, Status.FAILED, fence, {"fault": encode(fault)})

    async def locked(self, batch_id: str) -> bool:
        """Whether a run works on the batch now."""
        async with redis_call():
            return bool(await self._redis.exists(self._keys.batch_lock(batch_id)))

    async def acquire(self, batch_id: str) -> int | None:
        """Become the one run of a batch until released or silent; returns the fencing token."""
        keys = self._keys
        names = (keys.batch_lock(batch_id), keys.batch_fence, keys.batch(batch_id))
        async with redis_call():
            token = await self._redis.eval(_ACQUIRE, 3, *names, self._ttl_ms, repr(self._clock()))
        return None if token is None else int(token)

    async def renew(self, batch_id: str, fence: int) -> None:
        """Keep the lock; raises LockLost."""
        names = (self._keys.batch_lock(batch_id), self._keys.batch(batch_id))
        async with redis_call():
            kept = await self._redis.eval(_RENEW, 2, *names, fence, self._ttl_ms, repr(self._clock()))
        if not kept:
            raise LockLost(batch_id)

    async def release(self, batch_id: str, fence: int, clean: bool) -> None:
        """Give the lock back; ``clean`` says that the run did not fail."""
        names = (self._keys.batch_lock(batch_id), self._keys.batch(batch_id))
        async with redis_call():
            await self._redis.eval(_RELEASE, 2, *names, fence, int(clean))

    async def write_line(self, batch_id: str, fence: int, line: int, entry: bytes, ok: bool) -> None:
        """Keep the result of one line; the first one stays. Raises LockLost."""
        results = self._keys.batch_output(batch_id) if ok else self._keys.batch_errors(batch_id)
        async with redis_call():
            lock = self._keys.batch_lock(batch_id)
            kept = await self._redis.eval(_WRITE, 2, lock, results, fence, line, entry)
        if not kept:
            raise LockLost(batch_id)

    async def lines(self, batch_id: str, ok: bool) -> Sequence[int]:
        """Numbers of the lines that have a result of this kind, in order."""
        async with redis_call():
            return sorted(int(line) for line in await self._redis.hkeys(self._results(batch_id, ok)))

    async def results(self, batch_id: str, ok: bool, lines: Sequence[int]) -> Sequence[bytes]:
        """The results of these lines."""
        async with redis_call():
            return list(await self._redis.hmget(self._results(batch_id, ok), [str(n) for n in lines]))

    async def sweep(self, count: int = 1000) -> int:
        """Forget up to ``count`` batches past their retention; returns how many. For background work."""
        keys = self._keys
        async with redis_call():
            members = await self._redis.zrange(keys.batch_ends, 0, self._clock(), byscore=True, offset=0, num=count)
            for member in members:
                batch_id, tenant = member.decode().split("|", 1)
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.delete(keys.batch(batch_id), keys.batch_output(batch_id), keys.batch_errors(batch_id))
                    pipe.zrem(keys.batches(tenant), batch_id)
                    pipe.srem(keys.open_batches, batch_id)
                    pipe.zrem(keys.batch_ends, member)
                    await pipe.execute()
        return len(members)

    def _results(self, batch_id: str, ok: bool) -> str:
        return self._keys.batch_output(batch_id) if ok else self._keys.batch_errors(batch_id)

    @property
    def _ttl_ms(self) -> int:
        return int(self._settings.batch_lock_s * 1000)


def _batch(fields: Mapping[str, bytes], completed: int, failed: int) -> Batch:
    text = {key: value.decode() for key, value in fields.items() if key not in ("spec", "fault")}
    beat, fault = text.get("beat"), fields.get("fault")
    return Batch(
        spec=decode(fields["spec"], BatchSpec),
        status=Status(text["status"]),
        at={Status(key[len(_STATUS) :]): float(value) for key, value in text.items() if key.startswith(_STATUS)},
        total=int(text.get("total", 0)),
        completed=int(text.get("completed", completed)),
        failed=int(text.get("failed", failed)),
        output_file_id=text.get("output_file_id"),
        error_file_id=text.get("error_file_id"),
        fault=None if fault is None else decode(fault, Fault),
        beat_s=None if beat is None else float(beat),
        starts=int(text.get("starts", 0)),
    )
