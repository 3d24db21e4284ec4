"""The api's verbs on Redis."""

from collections.abc import Mapping, Sequence

from common.bus.interface import Cursor, QueueDepth, Submitted
from common.bus.redis_client import RedisClient
from common.bus.redis_wire import record_from, replies_from
from common.codec import encode
from common.messages import Control, End, Record, Reply, Request

READ_COUNT = 512


class RedisIngress(RedisClient):
    """See :class:`common.bus.interface.IngressBus`."""

    async def submit(self, request: Request, max_queued: int) -> Submitted:
        """See the interface."""
        blob = encode(request)
        answer = await self._run(
            "submit", request.id, request.tier, request.arrival_s, request.reply_to, blob, max_queued
        )
        return Submitted(answer.decode())

    async def end(self, request_id: str, end: End, attempt: int | None = None) -> bool:
        """See the interface."""
        wanted = "" if attempt is None else attempt
        return bool(await self._run("end", request_id, wanted, end.state.value, encode(end), end.reason))

    async def record(self, request_id: str) -> Record | None:
        """See the interface; raises CodecError if the record is corrupt."""
        ((fields, tokens),) = await self._run("read", request_id)
        return record_from(fields, tokens)

    async def replies(self, api: str, after: Cursor, block_s: float) -> tuple[Cursor, Sequence[Reply]]:
        """See the interface."""
        stream = self.keys.replies(api)
        entries = (await self._follow({stream: after}, block_s, READ_COUNT, forget=stream)).get(stream, [])
        return entries[-1][0] if entries else after, replies_from(entries)

    async def depths(self, tiers: Sequence[str]) -> Mapping[str, QueueDepth]:
        """See the interface."""
        answers = await self._run("depths", *tiers)
        return {
            tier: QueueDepth(waiting, float(oldest) if oldest else None)
            for tier, (waiting, oldest) in zip(tiers, answers, strict=True)
        }

    async def leader(self) -> str | None:
        """See the interface."""
        name: bytes | None = await self._command("GET", self.keys.leader)
        return None if name is None else name.decode()

    async def send(self, name: str, control: Control) -> None:
        """See the interface."""
        await self._run("send", name, "message", encode(control))
