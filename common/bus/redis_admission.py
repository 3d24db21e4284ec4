"""The planner's verbs on Redis."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from common.bus.interface import START, Claim, Claimed, Cursor, News, Room
from common.bus.redis_client import COMMAND_TIMEOUT_S, RedisClient, log
from common.bus.redis_wire import claim_from, progress_from, record_from
from common.codec import decode, encode
from common.errors import CodecError
from common.keys import Keys
from common.messages import Decided, Decision, End, Record, State, Verdict, Work, WorkerState

BATCH = 100
READ_COUNT = 512

POISON = encode(End(State.FAILED, "poison"))
WORKER_DIED = encode(End(State.FAILED, "worker_died"))
CORRUPT = encode(End(State.FAILED, "corrupt"))


class RedisAdmission(RedisClient):
    """See :class:`common.bus.interface.AdmissionBus`."""

    def __init__(self, url: str, keys: Keys, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        super().__init__(url, keys, timeout_s)
        self._beats: dict[bytes, tuple[bytes, WorkerState | None]] = {}

    async def lead(self, planner: str, ttl_s: float) -> int | None:
        """See the interface."""
        token: int | None = await self._run("lead", planner, max(1, round(ttl_s * 1000)))
        return token

    async def resign(self, planner: str) -> None:
        """See the interface."""
        await self._run("resign", planner)

    async def claim(self, tier: str, planner: str, count: int) -> Sequence[Claim]:
        """See the interface."""
        claimed = await self.claim_each({tier: Room(0, max(0, count))}, max(0, count), planner)
        return claimed.claims

    async def claim_each(self, rooms: Mapping[str, Room], shared: int, planner: str) -> Claimed:
        """See the interface."""
        wanted = [part for tier, room in rooms.items() if room.most > 0 for part in (tier, room.own, room.most)]
        answer, busy = await self._run("claim", planner, shared, *wanted)
        claims = []
        for tier, found in zip(answer[::2], answer[1::2], strict=True):
            claims += await self._readable(tier.decode(), found)
        return Claimed(claims, {name.decode(): float(until) for name, until in zip(busy[::2], busy[1::2], strict=True)})

    async def reclaim(self, tiers: Sequence[str], planner: str, max_deliveries: int = 3) -> Sequence[Claim]:
        """See the interface."""
        claims = []
        for tier in tiers:
            after = "-"
            while after:
                answer = await self._run("reclaim", tier, planner, after, BATCH, max_deliveries, POISON)
                claims += await self._readable(tier, answer[1])
                after = answer[0].decode()
        return claims

    async def _readable(self, tier: str, answers: Sequence[Any]) -> list[Claim]:
        claims = []
        for entry, request_id, *fields in answers:
            try:
                claims.append(claim_from(entry, *fields))
            except CodecError as error:
                log.warning("request %s can't be read: %s", request_id.decode(errors="replace"), error)
                await self._run("bury_entry", tier, entry, request_id, CORRUPT, "corrupt")
        return claims

    async def note(self, claim: Claim, decision: Decision, token: int) -> bool:
        """See the interface."""
        request_id = claim.request.id
        deferred_s = decision.decided_s if decision.verdict is Verdict.DEFERRED else ""
        decided = encode(Decided(request_id, claim.attempt, decision))
        return bool(await self._run("note", token, request_id, claim.attempt, encode(decision), deferred_s, decided))

    async def dispatch(self, claim: Claim, work: Work, token: int) -> bool:
        """See the interface."""
        decision, request_id = work.decision, claim.request.id
        if decision.prefill_worker is None:
            raise ValueError("a dispatch needs a prefill worker")
        answer = await self._run(
            "dispatch",
            token,
            claim.request.tier,
            claim.entry,
            request_id,
            work.attempt,
            decision.prefill_worker,
            decision.decode_worker or "",
            encode(decision),
            encode(work),
            encode(Decided(request_id, work.attempt, decision)),
        )
        return bool(answer)

    async def requeue(self, worker: str, token: int, max_deaths: int = 2) -> Sequence[str]:
        """See the interface; done in steps, so that many requests don't keep Redis from others."""
        requeued: list[str] = []
        left = 1
        while left:
            left, ids = await self._run("requeue", token, worker, max_deaths, BATCH, WORKER_DIED)
            requeued += [request_id.decode() for request_id in ids]
        return requeued

    async def workers(self, but: Collection[str] = ()) -> Mapping[str, WorkerState | None]:
        """See the interface; a worker whose heartbeat this build can't read is left out."""
        known, found = self._beats, {}
        for name, blob in await self._run("workers", *but):
            try:
                before, state = known.get(name, (b"", None))
                if blob != before:
                    state = decode(blob, WorkerState) if blob else None
                found[name] = blob, state
            except CodecError as error:
                log.warning("heartbeat of %s can't be read: %s", name.decode(), error)
        self._beats = found
        return {name.decode(): state for name, (_, state) in found.items()}

    async def progress(self, after: Cursor, block_s: float) -> News:
        """See the interface; the cursor is one of the log and one of the arrivals."""
        seen, _, arrived = after.partition(",")
        log_key, arrivals = self.keys.progress, self.keys.arrivals
        found = await self._follow({log_key: seen, arrivals: arrived or START}, block_s, READ_COUNT)
        entries, news = found.get(log_key, []), found.get(arrivals, [])
        seen = entries[-1][0] if entries else seen
        arrived = news[-1][0] if news else arrived or START
        return News(f"{seen},{arrived}", progress_from(entries), bool(news))

    async def inflight(self, worker: str) -> Sequence[Record]:
        """See the interface; corrupt records are left out."""
        ids = await self._command("SMEMBERS", self.keys.inflight(worker))
        records = []
        ordered = sorted(ids)
        for start in range(0, len(ordered), BATCH):
            for fields, tokens in await self._run("read", *ordered[start : start + BATCH]):
                try:
                    record = record_from(fields, tokens)
                except CodecError as error:
                    log.warning("record of a request of %s can't be read: %s", worker, error)
                    continue
                if record and not record.state.ended:
                    records.append(record)
        return records
