"""Every Redis key. One hash tag keeps them in one slot, so that scripts stay atomic on Redis Cluster."""

from dataclasses import dataclass

PLANNERS = "planners"
"""Consumer group of the tier streams."""

ADMISSION = "admission"
"""Name under which the planner leader receives control messages."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of one installation; ``namespace`` separates installations that share a Redis."""

    namespace: str = "slos"

    def _key(self, *parts: str) -> str:
        return ":".join(("{" + self.namespace + "}", *parts))

    def requests(self, tier: str) -> str:
        """Stream: ids of requests that wait in a tier; consumer group :data:`PLANNERS`."""
        return self._key("requests", tier)

    def record(self, request_id: str) -> str:
        """Hash: the durable state of one request."""
        return self._key("request", request_id)

    def work(self, stage: str, worker: str) -> str:
        """Stream: work for one worker and stage (``prefill:<worker>``, ``decode:<worker>``)."""
        return self._key(stage, worker)

    def inflight(self, worker: str) -> str:
        """Set: ids of requests that a worker has, moved atomically with the work."""
        return self._key("inflight", worker)

    def replies(self, api: str) -> str:
        """Stream: frames and decisions for one api replica."""
        return self._key("replies", api)

    def control(self, name: str) -> str:
        """Stream: cancels and the like for one process."""
        return self._key("control", name)

    def worker(self, worker: str) -> str:
        """String with expiry: a worker's last heartbeat."""
        return self._key("worker", worker)

    @property
    def workers(self) -> str:
        """Set: ids of workers that have registered and not been buried."""
        return self._key("workers")

    @property
    def progress(self) -> str:
        """Stream (bounded log): first tokens and ends, for the planner."""
        return self._key("progress")

    @property
    def leader(self) -> str:
        """String with expiry: the planner leader's name."""
        return self._key("leader")

    @property
    def epoch(self) -> str:
        """Counter: fencing token of the present leader."""
        return self._key("epoch")

    @property
    def finished(self) -> str:
        """Sorted set: ended requests by time of their end, for retention."""
        return self._key("finished")

    @property
    def dead_letters(self) -> str:
        """Stream: requests that were given up, with the reason."""
        return self._key("dead-letters")
