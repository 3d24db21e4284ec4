"""What the engine core tells the worker of its drafts, on a scheduler that has nothing to schedule."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from common.batching import Candidate, Columns
from common.engine.exports import CoreState, Reader, Writer
from common.engine.interface import Facts
from common.engine.promises import Promise
from common.engine.vllm import VllmEngine
from common.settings import Settings
from common.speculation import Acceptance
from tests.common.engine.idle import Idle

After = Callable[..., CoreState]


@pytest.fixture
def make_drafts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Our part alone, over a scheduler that drafts so many tokens at most."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what vLLM's libraries deprecate
        from common.engine import vllm_scheduler
        from common.engine.vllm_drafting import Drafting
    monkeypatch.setattr(vllm_scheduler, "_die_with_parent", lambda: None)

    def make(most: int = 0) -> Any:
        class Drafts(Drafting, Idle):
            num_spec_tokens = most

        reader = Reader()
        drafts: Any = Drafts(SimpleNamespace(additional_config={vllm_scheduler.EXTRA: {"export": reader.path}}))
        drafts.reader = reader
        reader.unlink()
        return drafts

    return make


@pytest.fixture
def after(make_drafts: Callable[..., Any]) -> After:
    """The exported state after verifying pairs of so many drafts, of which so many were accepted."""

    def run(*verified: tuple[int, int]) -> CoreState:
        drafts = make_drafts()
        for drafted, accepted in verified:
            drafts._verified(Promise("chat", 0.0, None), drafted, accepted)
        drafts._publish()
        state: CoreState = drafts.reader.state()
        return state

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


@pytest.mark.vllm
def test_nobody_drafts_while_a_promised_prompt_waits(make_drafts: Callable[..., Any]) -> None:
    drafts = make_drafts(4)
    drafts._acceptance["chat"] = Acceptance(accepted=99.0, rejected=1.0)
    drafts._promises = {"decode": Promise("chat", 0.0, None), "prompt": Promise("chat", 0.0, None)}
    decode = Candidate("decode", 1, 100, 0.0, 50.0, 0.1, 1, drafts=4, promised=True, running=True)
    prompt = Candidate("prompt", 80, 0, 0.0, 50.0, 0.1, 1, promised=True, running=False)
    for candidates, longest in (([decode], 4), ([decode, prompt], 0), ([decode], 4)):
        columns = Columns.of(candidates)
        drafts._limit_drafts(columns, 90, 0.0)
        drafts._grants = {}
        output = SimpleNamespace(num_spec_tokens_to_schedule=4, num_scheduled_tokens={})
        drafts._update_after_schedule(output)
        assert output.num_spec_tokens_to_schedule == columns.drafts[0] == longest


@pytest.mark.parametrize(("exported", "expected"), [(2.5, 2.5), (0.0, 1.0)])
async def test_the_load_tells_it_and_one_where_the_scheduler_does_not_say(exported: float, expected: float) -> None:
    engine = VllmEngine(Settings(model="none"))
    engine._facts = Facts("f", "none", 100, 100, 16, 10, 4, 64)
    Writer(engine._reader.path).update(draft_tokens=exported)
    engine._reader.unlink()
    assert engine.load().draft_tokens == expected
