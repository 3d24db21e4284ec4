from common.engine.exports import CoreState, Kind, Reader, Writer


def test_the_reader_sees_the_last_state_and_only_changed_fields_change() -> None:
    reader = Reader()
    writer = Writer(reader.path)
    reader.unlink()
    assert reader.state() == CoreState()
    writer.update(free_blocks=7, running=2)
    writer.update(running=3)
    assert reader.state() == CoreState(running=3, free_blocks=7)


def test_events_are_read_once_and_in_order() -> None:
    reader = Reader()
    writer = Writer(reader.path)
    reader.unlink()
    writer.event(Kind.SCHEDULED, 5, 1.5)
    writer.event(Kind.STEP, 0, 1, 2, 3, 4, 5, 6)
    assert [(event.kind, event.key, event.values[:2]) for event in reader.events()] == [
        (2, 5, (1.5, 0)),
        (1, 0, (1, 2)),
    ]
    assert list(reader.events()) == []


def test_a_slow_reader_loses_the_oldest_events_and_no_others() -> None:
    reader = Reader()
    writer = Writer(reader.path)
    reader.unlink()
    for number in range(10_000):
        writer.event(Kind.PULLED, number)
    keys = [event.key for event in reader.events()]
    assert keys == list(range(keys[0], 10_000))
    assert 4000 < len(keys) <= 4096
