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

    def tokens(self, request_id: str) -> str:
        """String: the tokens of one request so far, as uint32; apart from the record so that it can be appended to."""
        return self._key("tokens", request_id)

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

    def buried(self, worker: str) -> str:
        """String with expiry: this worker was declared dead and must stop."""
        return self._key("buried", worker)

    @property
    def workers(self) -> str:
        """Set: ids of workers that have registered and not been buried."""
        return self._key("workers")

    @property
    def progress(self) -> str:
        """Stream (bounded log): first tokens and ends, for the planner."""
        return self._key("progress")

    @property
    def arrivals(self) -> str:
        """Stream of one entry: the latest arrival in any tier, to wake the planner."""
        return self._key("arrivals")

    @property
    def leader(self) -> str:
        """String with expiry: the planner leader's name."""
        return self._key("leader")

    @property
    def epoch(self) -> str:
        """Counter: fencing token of the present leader."""
        return self._key("epoch")

    @property
    def led_by(self) -> str:
        """String: the planner that :attr:`epoch` was given to."""
        return self._key("led-by")

    @property
    def finished(self) -> str:
        """Sorted set: ended requests by time of their end, for retention."""
        return self._key("finished")

    @property
    def dead_letters(self) -> str:
        """Stream: requests that were given up, with the reason."""
        return self._key("dead-letters")

    @property
    def busy(self) -> str:
        """Hash: until when each worker said that its present iteration lasts."""
        return self._key("busy")

    def steps(self, kind: str) -> str:
        """Stream (bounded log): measured engine steps of all workers of one kind."""
        return self._key("steps", kind)

    def profile(self, kind: str) -> str:
        """String: the refitted latency profile of one kind of worker."""
        return self._key("profile", kind)

    def file(self, file_id: str) -> str:
        """String: what is known about a file; it exists once the upload is complete."""
        return self._key("file", file_id)

    def file_data(self, file_id: str) -> str:
        """List: a file's content in chunks."""
        return self._key("file-data", file_id)

    def files(self, tenant: str) -> str:
        """Sorted set: a tenant's files by time of creation."""
        return self._key("files", tenant)

    @property
    def file_bytes(self) -> str:
        """Hash: bytes stored by tenant."""
        return self._key("file-bytes")

    @property
    def file_ends(self) -> str:
        """Sorted set: files by the time at which they expire."""
        return self._key("file-ends")

    def batch(self, batch_id: str) -> str:
        """Hash: an offline batch and how far it is."""
        return self._key("batch", batch_id)

    def batch_lock(self, batch_id: str) -> str:
        """String with expiry: fencing token of the task that works on a batch."""
        return self._key("batch-lock", batch_id)

    def batch_output(self, batch_id: str) -> str:
        """Hash: results of a batch by line number, until they become its output file."""
        return self._key("batch-output", batch_id)

    def batch_errors(self, batch_id: str) -> str:
        """Hash: failures of a batch by line number, until they become its error file."""
        return self._key("batch-errors", batch_id)

    def batches(self, tenant: str) -> str:
        """Sorted set: a tenant's batches by time of creation."""
        return self._key("batches", tenant)

    @property
    def open_batches(self) -> str:
        """Set: batches that have not ended."""
        return self._key("open-batches")

    @property
    def batch_ends(self) -> str:
        """Sorted set: batches by the time at which they are forgotten."""
        return self._key("batch-ends")

    @property
    def batch_fence(self) -> str:
        """Counter: fencing tokens of batch locks."""
        return self._key("batch-fence")

    @property
    def celery(self) -> str:
        """Prefix of everything that Celery keeps in Redis."""
        return self._key("celery:")
