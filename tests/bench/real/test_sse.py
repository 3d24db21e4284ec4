from bench.real.sse import Event, parse


def test_an_event_has_its_name_and_data_and_nothing_of_other_fields() -> None:
    assert parse(b"id: 3\nevent: token\ndata: {}", 1.5) == Event("token", b"{}", 1.5)


def test_a_comment_or_a_pause_is_no_event() -> None:
    assert parse(b": keep-alive", 0.0) is None
    assert parse(b"retry: 1000", 0.0) is None
