"""The queue on Redis Streams: every verb is one script or one read, so it is atomic.

Works on Redis 6.2, 7 and 8 (and Valkey); the keys share a hash tag, so also in one slot of a cluster.
"""

from collections.abc import Sequence
from typing import Self
from urllib.parse import quote, urlsplit

from common.bus.interface import DeadLetter
from common.bus.redis_admission import BATCH, RedisAdmission
from common.bus.redis_client import pairs
from common.bus.redis_ingress import RedisIngress
from common.bus.redis_worker import RedisWorker
from common.keys import Keys
from common.settings import Settings


def online_url(settings: Settings) -> str:
    """Where the online path connects: user, password and database are always those of ``redis_url``."""
    if settings.redis_socket is None:
        return settings.redis_url
    given = urlsplit(settings.redis_url)
    login = given.netloc.rpartition("@")[0]
    path = quote(str(settings.redis_socket.resolve()))
    return f"unix://{login + '@' if login else ''}{path}?db={given.path.strip('/') or 0}"


class RedisBus(RedisIngress, RedisAdmission, RedisWorker):
    """A :class:`common.bus.interface.Bus`; connects when first used, and again after Redis was away."""

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """The bus that the settings name, over the unix socket if they have one."""
        return cls(online_url(settings), Keys(settings.namespace))

    async def dead_letters(self, count: int = 100) -> Sequence[DeadLetter]:
        """See the interface."""
        letters = []
        for entry, fields in await self._command("XREVRANGE", self.keys.dead_letters, "+", "-", "COUNT", count):
            found = {name: value.decode(errors="replace") for name, value in pairs(fields)}
            time_s = int(entry.partition(b"-")[0]) / 1000
            letters.append(DeadLetter(found.get("id", ""), found.get("reason", ""), time_s))
        return letters

    async def sweep(self, older_than_s: float, count: int = 1000) -> int:
        """See the interface; done in steps, so that many requests don't keep Redis from others."""
        forgotten = 0
        while forgotten < count:
            wanted = min(BATCH, count - forgotten)
            step = int(await self._run("sweep", older_than_s, wanted))
            forgotten += step
            if step < wanted:
                break
        return forgotten
