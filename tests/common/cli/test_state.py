import os
import stat
import subprocess
import sys
from pathlib import Path

from common.cli.state import UpState, read_state, remove_state, write_state
from common.cli.supervisor import ChildStatus

CHILDREN = (ChildStatus("api", 12, 0), ChildStatus("redis", None, 3))


def state(pid: int) -> UpState:
    return UpState(pid, "http://127.0.0.1:8000", "redis://:secret@127.0.0.1:1/0", 1.5)


def test_a_written_state_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "up.json"
    write_state(path, state(os.getpid()), CHILDREN)
    read = read_state(path)
    assert read is not None
    assert (read.url, read.children) == ("http://127.0.0.1:8000", CHILDREN)


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    write_state(tmp_path / "up.json", state(os.getpid()), CHILDREN)
    assert stat.S_IMODE((tmp_path / "up.json").stat().st_mode) == 0o600


def test_the_state_of_a_pipeline_that_has_died_does_not_count(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_state(tmp_path / "up.json", state(ended.pid), CHILDREN)
    assert read_state(tmp_path / "up.json") is None


def test_no_file_and_a_broken_file_mean_that_nothing_runs(tmp_path: Path) -> None:
    assert read_state(tmp_path / "up.json") is None
    (tmp_path / "up.json").write_text('{"pid": 1')
    assert read_state(tmp_path / "up.json") is None


def test_removing_it_twice_is_fine(tmp_path: Path) -> None:
    write_state(tmp_path / "up.json", state(os.getpid()), CHILDREN)
    remove_state(tmp_path / "up.json")
    remove_state(tmp_path / "up.json")
    assert list(tmp_path.iterdir()) == []
