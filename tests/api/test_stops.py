from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from api.stops import StopFilter

LETTERS = st.text("ab\n", max_size=24)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    found = [index for index in (text.find(stop) for stop in stops) if index >= 0]
    return (text[: min(found)], True) if found else (text, False)


@given(LETTERS, st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 24)))
def test_pieces_of_any_size_give_the_text_before_the_first_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = sorted({0, len(text), *(edge for edge in cuts if edge < len(text))})
    stop_filter = StopFilter(stops)
    shown = ""
    for start, end in pairwise(edges):
        shown += stop_filter.feed(text[start:end])
        if stop_filter.stopped:
            break
    shown += stop_filter.flush()

    whole, _ = cut(text, stops)
    if not stop_filter.stopped:
        assert shown == text == whole
    else:
        assert any(text.startswith(shown + stop) for stop in stops)
        assert len(shown) >= len(whole)


@given(LETTERS, st.text("ab\n", min_size=1, max_size=4))
def test_one_stop_string_cuts_exactly_before_its_first_place(text: str, stop: str) -> None:
    stop_filter = StopFilter([stop])
    shown = "".join(stop_filter.feed(letter) for letter in text) + stop_filter.flush()
    assert (shown, stop_filter.stopped) == cut(text, [stop])


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_known() -> None:
    stop_filter = StopFilter(["END"])
    assert stop_filter.feed("the E") == "the "
    assert stop_filter.feed("N") == ""
    assert stop_filter.feed("X") == "ENX"
