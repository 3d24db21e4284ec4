"""What the engine core's events become in a job's notes."""

import pytest

from common.engine.exports import Kind, Reader, Writer
from common.engine.vllm_notes import Observations

KEY = 7


@pytest.fixture
def core() -> tuple[Writer, Observations]:
    reader = Reader()
    writer = Writer(reader.path)
    reader.unlink()
    observations = Observations(reader)
    observations.begin(KEY)
    return writer, observations


def test_a_pull_is_noted_with_its_time_and_bytes_once_it_has_ended(core: tuple[Writer, Observations]) -> None:
    writer, observations = core
    writer.event(Kind.PULL_STARTED, KEY, 5.0)
    assert observations.pulling_s(KEY) is not None
    assert observations.of(KEY) == {}
    writer.event(Kind.PULLED, KEY, 17.0, 4096.0)
    assert observations.pulling_s(KEY) is None
    assert observations.of(KEY) == {"kv_transfer_ms": 17.0, "kv_bytes": 4096.0}


def test_a_pull_that_ends_after_it_was_given_up_is_not_noted(core: tuple[Writer, Observations]) -> None:
    writer, observations = core
    writer.event(Kind.PULL_STARTED, KEY, 5.0)
    observations.collect()
    observations.recomputed(KEY)
    writer.event(Kind.PULLED, KEY, 2470.0, 4096.0)
    assert observations.of(KEY) == {"recomputed": 1.0}


def test_a_late_or_failed_pull_is_recomputed(core: tuple[Writer, Observations]) -> None:
    writer, observations = core
    writer.event(Kind.PULL_LATE, KEY)
    assert observations.of(KEY) == {"recomputed": 1.0, "lease_expired": 1.0}
    observations.end(KEY)
    observations.begin(KEY)
    writer.event(Kind.PULL_FAILED, KEY)
    assert observations.of(KEY) == {"recomputed": 1.0}
