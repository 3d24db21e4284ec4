import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.context import Context, load_context
from api.delivery import Delivery, Gap
from api.intake import Prepared
from common.messages import Decided, End, Frame, Overload, Record, Request, Sampling, State, Verdict
from common.settings import Settings
from tests.api.conftest import MODEL
from tests.api.pipeline import decision

_CONTEXT = load_context(Settings(model=str(MODEL)))
_TEXT = "def f(x):\n    return 'né 🙂'\n"
_TOKENS = _CONTEXT.tokenizer.encode_now(_TEXT, add_special_tokens=False)


def prepared(stops: tuple[str, ...] = (), **sampling: object) -> Prepared:
    request = Request(
        id="req-1",
        tier="chat",
        tenant="anyone",
        arrival_s=time.time(),
        prompt=(0, 40),
        sampling=replace(Sampling(max_tokens=100), **sampling),  # type: ignore[arg-type] # real fields
        slo=None,
        overload=Overload.DEFER,
        value=1.0,
        patience_ms=1000.0,
    )
    return Prepared(request, 100, stops)


def delivery(context: Context = _CONTEXT, stops: tuple[str, ...] = (), **sampling: object) -> Delivery:
    return Delivery(prepared(stops, **sampling), context)


def frame(position: int, tokens: tuple[int, ...], attempt: int = 1, end: End | None = None) -> Frame:
    return Frame("req-1", attempt, position, tokens, 0.0, end)


def record(tokens: tuple[int, ...], end: End | None = None) -> Record:
    state = end.state if end else State.RUNNING
    return Record(prepared().request, state, 1, None, tokens, end, {}, None, None)


@given(st.data())
def test_replayed_reordered_and_dropped_frames_give_the_same_text(data: st.DataObject) -> None:
    edges = sorted({0, len(_TOKENS), *data.draw(st.lists(st.integers(0, len(_TOKENS)), max_size=8))})
    frames = [frame(start, _TOKENS[start:end]) for start, end in pairwise(edges)]
    frames.append(frame(len(_TOKENS), (), end=End(State.DONE, "length")))
    subject, written, shown = delivery(), 0, ""
    for sent in data.draw(st.lists(st.sampled_from(frames), max_size=30)) + frames:
        written = max(written, sent.position + len(sent.tokens))
        try:
            piece = subject.take(sent, 1.0)
        except Gap:  # the record is written with each frame, so it is never behind
            piece = subject.catch_up(record(_TOKENS[:written]), 1.0)
        shown += piece.answer if piece else ""
    assert (shown, subject.answer) == (_TEXT, _TEXT)
    assert tuple(subject.tokens) == _TOKENS
    assert len(subject.times_s) == len(_TOKENS)


@given(st.data())
def test_a_new_attempt_goes_on_where_the_old_one_stopped(data: st.DataObject) -> None:
    died = data.draw(st.integers(0, len(_TOKENS)))
    begins = data.draw(st.integers(0, died))
    subject = delivery()
    subject.take(frame(0, _TOKENS[:died]), 1.0)
    subject.take(frame(begins, _TOKENS[begins:], attempt=2), 2.0)
    assert tuple(subject.tokens) == _TOKENS


def test_frames_of_an_older_attempt_are_dropped() -> None:
    subject = delivery()
    subject.take(Decided("req-1", 2, decision()), 1.0)
    assert subject.take(frame(0, (40,), attempt=1), 1.0) is None
    assert subject.tokens == []


def test_missing_tokens_are_a_gap_and_not_skipped() -> None:
    subject = delivery()
    with pytest.raises(Gap):
        subject.take(frame(1, (40,)), 1.0)
    assert subject.behind(frame(1, (40,)))


def test_nothing_is_taken_after_the_end() -> None:
    subject = delivery()
    subject.take(frame(0, (40,), end=End(State.DONE, "length")), 1.0)
    assert subject.take(frame(1, (41,)), 2.0) is None
    assert subject.catch_up(record((40, 41)), 2.0) is None
    assert subject.end == End(State.DONE, "length")


def test_a_stop_string_ends_it_and_cuts_text_and_tokens() -> None:
    subject = delivery(stops=("return",))
    piece = subject.take(frame(0, _TOKENS), 1.0)
    assert piece is not None
    assert piece.answer == "def f(x):\n    "
    assert subject.stopped
    assert subject.end == End(State.DONE, "stop")
    assert len(subject.tokens) < len(_TOKENS)


def test_a_stop_string_does_not_count_before_min_tokens() -> None:
    subject = delivery(stops=("def",), min_tokens=len(_TOKENS))
    subject.take(frame(0, _TOKENS, end=End(State.DONE, "length")), 1.0)
    assert subject.answer == _TEXT


def test_the_token_that_made_the_engine_stop_is_no_text() -> None:
    subject = delivery()
    subject.take(frame(0, _TOKENS, end=End(State.DONE, "stop")), 1.0)
    assert subject.answer == _CONTEXT.tokenizer.decode(_TOKENS[:-1])
    assert tuple(subject.tokens) == _TOKENS


def test_an_unfinished_character_is_shown_at_the_end() -> None:
    smile = _CONTEXT.tokenizer.encode_now("🙂", add_special_tokens=False)
    subject = delivery()
    subject.take(frame(0, smile[:-1], end=End(State.DONE, "length")), 1.0)
    assert "\ufffd" in subject.answer


def test_a_rejection_ends_it_with_the_planners_retry_time() -> None:
    subject = delivery()
    subject.take(Decided("req-1", 1, decision(verdict=Verdict.REJECTED, reason="busy", retry_after_s=7.0)), 1.0)
    assert subject.end == End(State.REJECTED, "slo_not_possible", "busy", 7.0)
