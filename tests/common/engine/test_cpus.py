import os

import pytest
from pydantic import ValidationError

from common.engine.cpus import keep_to, parse, share
from common.errors import EngineError
from common.settings import Settings


def test_a_list_of_cpus_is_read_as_linux_writes_it() -> None:
    assert parse("4,0-2,1") == (0, 1, 2, 4)


@pytest.mark.parametrize("text", ["a", "1,", "-1", "1-", "0 1", "12345"])
def test_other_text_is_refused_at_start(text: str) -> None:
    with pytest.raises(ValidationError, match="engine_cpus"):
        Settings(engine_cpus=text)


def test_a_range_that_runs_backwards_names_no_cpu() -> None:
    with pytest.raises(EngineError, match="no CPU"):
        parse("3-2")


def test_engines_share_nothing_unless_there_are_too_few_cpus() -> None:
    assert [share((0, 1, 2, 3, 4), n, 2, 2) for n in range(2)] == [(0, 1), (2, 3)]
    assert share((0, 1), 0, 3, 1) == ()


def test_keeping_to_cpus_that_are_not_there_is_an_engine_error() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(EngineError, match="9999"):
        keep_to({9999})
    keep_to(())
    assert os.sched_getaffinity(0) == before
