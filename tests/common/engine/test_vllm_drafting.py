"""What the engine core tells the worker of its drafts, on a scheduler that has nothing to schedule."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from common.engine.exports import CoreState, Reader, Writer
from common.engine.interface import Facts
from common.engine.promises import Promise
from common.engine.vllm import VllmEngine
from common.settings import Settings
from tests.common.engine.idle import Idle

After = Callable[..., CoreState]


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> After:
    """The exported state after verifying pairs of so many drafts, of which so many were accepted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vLLM's libraries deprecate
        from common.engine import vllm_scheduler
        from common.engine.vllm_drafting import Drafting
    monkeypatch.setattr(vllm_scheduler, "_die_with_parent", lambda: None)

    class Drafts(Drafting, Idle):
        """Our part alone."""

    def run(*verified: tuple[int, int]) -> CoreState:
        reader = Reader()
        drafts = Drafts(SimpleNamespace(additional_config={vllm_scheduler.EXTRA: {"export": reader.path}}))
        reader.unlink()
        for drafted, accepted in verified:
            drafts._verified(Promise("chat", 0.0, None), drafted, accepted)
        drafts._publish()
        return reader.state()

    return run


@pytest.mark.vllm
def test_tokens_of_a_verification_are_exported_and_follow_what_is_accepted(after: After) -> None:
    assert after(*[(4, 3)] * 300).draft_tokens == pytest.approx(4.0, abs=0.05)
    assert after(*[(4, 3)] * 300, *[(4, 0)] * 300).draft_tokens == pytest.approx(1.0, abs=0.05)


@pytest.mark.vllm
def test_steps_without_drafts_say_nothing_of_them(after: After) -> None:
    few = [(4, 2)] * 10
    assert after(*few, *[(0, 0)] * 100).draft_tokens == after(*few).draft_tokens > 1
    assert after().draft_tokens == 1


@pytest.mark.parametrize(("exported", "expected"), [(2.5, 2.5), (0.0, 1.0)])
async def test_the_load_tells_it_and_one_where_the_scheduler_does_not_say(exported: float, expected: float) -> None:
    engine = VllmEngine(Settings(model="none"))
    engine._facts = Facts("f", "none", 100, 100, 16, 10, 4, 64)
    Writer(engine._reader.path).update(draft_tokens=exported)
    engine._reader.unlink()
    assert engine.load().draft_tokens == expected
