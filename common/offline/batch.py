"""What an offline batch is: its fixed part, its status and the names that OpenAI's API gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from common.codec import message


class Status(StrEnum):
    """Where a batch is. The last four are ends."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)


@message
@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What a client asked for; never changes. ``metadata`` holds strings by string."""

    id: str
    tenant: str
    input_file_id: str
    endpoint: str
    completion_window: str
    created_s: float
    expires_s: float
    metadata: Mapping[str, str] | None = None


@message
@dataclass(frozen=True, slots=True)
class Fault:
    """Why a whole batch failed; ``line`` where one line is to blame."""

    code: str
    message: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as stored. ``at`` has the time of each status that it has been in; ``total`` counts its lines."""

    spec: BatchSpec
    status: Status
    at: Mapping[Status, float]
    total: int
    completed: int
    failed: int
    output_file_id: str | None
    error_file_id: str | None
    fault: Fault | None
    beat_s: float | None
    starts: int


def request_id(batch_id: str, line: int) -> str:
    """The pipeline's id of one line: always the same, so that it can't run twice."""
    return f"batch-{batch_id}-{line}"


def output_file(batch_id: str) -> str:
    """Id of a batch's output file."""
    return f"file-{batch_id}-output"


def error_file(batch_id: str) -> str:
    """Id of a batch's error file."""
    return f"file-{batch_id}-error"
