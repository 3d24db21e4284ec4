"""Everything that slos-serve raises on purpose.

    SlosError
    ├── CodecError                 a message that can't be read
    │   ├── SchemaVersionError     written by another schema version
    │   └── MessageTooLarge        over the size bound, refused before it is decoded
    ├── BusError                   the queue can't do what was asked
    │   ├── BusUnavailable         no connection; trying again is right
    │   ├── BusFull                Redis is out of memory
    │   └── LeadershipLost         the caller's fencing token is stale
    ├── EngineError                the engine can't do what was asked
    │   ├── EngineDead             the engine process is gone; it must be restarted
    │   ├── EngineRefused          the input is not acceptable to this engine
    │   └── HandOffExpired         the KV cache of a hand-off may no longer be read
    ├── ProfileError               a latency profile that can't be used
    ├── TiersError                 a tiers file that can't be used
    └── WorkloadError              a workload or trace file that can't be used

Across a process boundary an error is a message (:class:`common.messages.End`), never an exception.
"""


class SlosError(Exception):
    """Base of all errors that slos-serve raises on purpose."""


class CodecError(SlosError):
    """A message is malformed: wrong type, missing field or out of bounds."""


class SchemaVersionError(CodecError):
    """A message was written by another schema version."""


class MessageTooLarge(CodecError):
    """A message is larger than the bound; it was not decoded."""


class BusError(SlosError):
    """The queue can't do what was asked."""


class BusUnavailable(BusError):
    """The queue can't be reached; trying again later is right."""


class BusFull(BusError):
    """The queue is out of memory and refuses writes."""


class LeadershipLost(BusError):
    """The caller's fencing token is stale: another planner leads now."""


class EngineError(SlosError):
    """The engine can't do what was asked."""


class EngineDead(EngineError):
    """The engine process is gone; only a restart helps."""


class EngineRefused(EngineError):
    """The engine does not accept this input; the engine itself is fine."""


class HandOffExpired(EngineError):
    """The KV cache of a hand-off is past its lease and may have been overwritten."""


class ProfileError(SlosError):
    """A latency profile is missing, malformed or made for another model or machine."""


class TiersError(SlosError):
    """A tiers file is malformed."""


class WorkloadError(SlosError):
    """A workload or trace file is malformed; the message names the line and the field."""
