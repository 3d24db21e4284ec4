import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import codec, messages
from common.codec import (
    MAX_MESSAGE_BYTES,
    SCHEMA_VERSION,
    Tokens,
    decode,
    decode_any,
    encode,
    pack_tokens,
    unpack_tokens,
)
from common.errors import CodecError, MessageTooLarge, SchemaVersionError
from common.latency_model import LatencyModel, Piece
from common.messages import Cancel, End, Frame, KeepTrace, Slo, State
from tests.factories import make_request

MESSAGES: list[type] = [
    cls for name, cls in vars(messages).items() if isinstance(cls, type) and codec._by_tag.get(name) is cls
]

positive = st.floats(1e-6, 1e8)
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=20).map(tuple)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SPECIAL: dict[Any, st.SearchStrategy[Any]] = {
    Slo: st.builds(Slo, positive, st.none(), positive, st.none() | positive)
    | st.builds(Slo, st.none(), positive, positive, st.none() | positive),
    LatencyModel: st.builds(
        LatencyModel,
        st.lists(st.builds(Piece, positive, positive, positive), min_size=1, max_size=3).map(tuple),
        positive,
        positive,
        positive,
    ),
    Tokens: tokens,
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(),
    bool: st.booleans(),
    Any: anything,
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type."""
    if hint in SPECIAL:
        return SPECIAL[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping or typing.get_origin(hint) is dict:
        return st.dictionaries(st.text(), values_of(arguments[1]), max_size=4)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if part is type(None) else values_of(part) for part in arguments])
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{field.name: values_of(hints[field.name]) for field in dataclasses.fields(hint)})


any_message = st.sampled_from(MESSAGES).flatmap(values_of)


def test_all_messages_are_covered() -> None:
    assert {"Request", "Work", "Frame", "Decided", "Progress", "Cancel", "WorkerState"} <= {
        cls.__name__ for cls in MESSAGES
    }


@pytest.mark.parametrize("cls", MESSAGES)
@given(data=st.data())
@settings(max_examples=15)
def test_what_is_decoded_is_what_was_encoded(cls: type, data: st.DataObject) -> None:
    value = data.draw(values_of(cls))
    assert decode(encode(value), cls) == value
    assert type(decode_any(encode(value))) is cls


@given(st.binary(max_size=200))
@example(b"")
@example(msgpack.packb([SCHEMA_VERSION, ["Frame"], []]))
@settings(max_examples=150)
def test_random_bytes_are_a_codec_error(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode_any(data)


@given(anything)
@settings(max_examples=100)
def test_random_structures_are_a_codec_error_or_fit(value: Any) -> None:
    for cls in MESSAGES:
        with contextlib.suppress(CodecError):
            assert type(decode_any(msgpack.packb([SCHEMA_VERSION, cls.__name__, value]))) is cls


@given(any_message, st.data())
@settings(max_examples=150)
def test_a_damaged_message_is_read_or_a_codec_error(value: Any, data: st.DataObject) -> None:
    blob = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(blob[: data.draw(st.integers(0, len(blob)))])
    with contextlib.suppress(CodecError):
        decode_any(damaged)


@given(any_message, st.data())
@settings(max_examples=100)
def test_a_field_of_another_type_is_a_codec_error_or_fits(value: Any, data: st.DataObject) -> None:
    version, tag, body = msgpack.unpackb(encode(value))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(anything)
    try:
        read = decode_any(msgpack.packb([version, tag, body]))
    except CodecError:
        return
    assert type(read) is type(value)


@given(st.integers(-5, 1000).filter(lambda version: version != SCHEMA_VERSION) | st.text() | st.none())
def test_another_version_is_named(version: object) -> None:
    blob = msgpack.packb([version, "KeepTrace", ["abc"]])
    with pytest.raises(SchemaVersionError, match="schema version"):
        decode(blob, KeepTrace)


def test_an_oversize_message_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(MessageTooLarge):
        decode_any(b"\xc1" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(MessageTooLarge):
        decode(encode(KeepTrace("a" * 100)), KeepTrace, max_bytes=99)


def test_what_nobody_would_decode_is_not_encoded() -> None:
    with pytest.raises(MessageTooLarge, match="Request"):
        encode(make_request(prompt=(1,) * (MAX_MESSAGE_BYTES // 4)))


def test_another_message_than_expected_is_an_error() -> None:
    with pytest.raises(CodecError, match="expected Frame, got KeepTrace"):
        decode(encode(KeepTrace("abc")), Frame)


def test_an_unknown_message_is_an_error() -> None:
    with pytest.raises(CodecError, match="unknown message 'Virus'"):
        decode_any(msgpack.packb([SCHEMA_VERSION, "Virus", []]))


def test_an_error_names_the_field() -> None:
    blob = msgpack.packb([SCHEMA_VERSION, "Cancel", ["r", "one", "why"]])
    with pytest.raises(CodecError, match=r"Cancel\.attempt: expected int, got str"):
        decode(blob, Cancel)


def test_a_missing_field_is_an_error() -> None:
    with pytest.raises(CodecError, match="Cancel needs 3 fields"):
        decode(msgpack.packb([SCHEMA_VERSION, "Cancel", ["r", 1]]), Cancel)


def test_last_fields_that_an_older_build_did_not_have_are_their_defaults() -> None:
    body = msgpack.unpackb(encode(Frame("r", 1, 0, (), 1.0, End(State.DONE, "stop"), {"ms": 1.0})))[2]
    old = decode(msgpack.packb([SCHEMA_VERSION, "Frame", body[:5]]), Frame)
    assert old == Frame("r", 1, 0, (), 1.0)
    for wrong in (body[:4], [*body, 1]):
        with pytest.raises(CodecError, match="Frame needs 5 to 7 fields"):
            decode(msgpack.packb([SCHEMA_VERSION, "Frame", wrong]), Frame)


def test_a_boolean_is_no_number() -> None:
    with pytest.raises(CodecError, match="expected int, got bool"):
        decode(msgpack.packb([SCHEMA_VERSION, "Cancel", ["r", True, "why"]]), Cancel)


def test_an_impossible_model_is_a_codec_error() -> None:
    profile = messages.Profile(
        "f", LatencyModel((Piece(1.0, 0.0, 0.0),)), LatencyModel((Piece(1.0, 0.0, 0.0),)), 1, 0.1, 1.0
    )
    version, tag, body = msgpack.unpackb(encode(profile))
    body[1][0] = []
    with pytest.raises(CodecError, match="latency coefficients"):
        decode_any(msgpack.packb([version, tag, body]))


def test_a_map_holds_values_of_its_type() -> None:
    version, tag, body = msgpack.unpackb(encode(Frame("r", 1, 0, (), 1.0, None, {"ms": 1.0})))
    body[6] = {"ms": "fast"}
    with pytest.raises(CodecError, match=r"Frame\.notes: expected float"):
        decode_any(msgpack.packb([version, tag, body]))


def test_whatever_counts_as_a_number_is_a_note() -> None:
    frame = Frame("r", 1, 0, (), 1, None, {"recomputed": True, "cached_tokens": 3})
    assert decode(encode(frame), Frame).notes == {"recomputed": 1.0, "cached_tokens": 3.0}


@pytest.mark.parametrize("token", [-1, 2**32, 1.5, "1", None])
def test_a_token_out_of_range_is_not_encoded(token: Any) -> None:
    with pytest.raises(CodecError, match="Frame can't be encoded"):
        encode(Frame("r", 1, 0, (token,), 1.0))


@pytest.mark.parametrize(
    "value", [object(), "text", None, Slo(1.0, None, 1.0), Cancel("\ud800", 1, ""), Cancel("r", 2**70, "")]
)
def test_what_is_no_message_is_not_encoded(value: object) -> None:
    with pytest.raises(CodecError):
        decode_any(encode(value))


@given(tokens)
def test_tokens_take_four_little_endian_bytes_each(values: Tokens) -> None:
    assert pack_tokens(values) == b"".join(value.to_bytes(4, "little") for value in values)
    assert unpack_tokens(pack_tokens(values)) == values


@pytest.mark.parametrize("blob", [b"123", "1234", None, [1, 2, 3, 4]])
def test_torn_tokens_are_a_codec_error(blob: Any) -> None:
    with pytest.raises(CodecError):
        unpack_tokens(blob)


def test_an_end_survives_with_its_state() -> None:
    end = End(State.EXPIRED, "patience", "waited 30 s", math.pi)
    assert decode(encode(end), End) == end


def test_a_field_that_its_class_computes_does_not_travel() -> None:
    @codec.message
    @dataclasses.dataclass(frozen=True)
    class Doubled:
        number: int
        twice: int = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "twice", 2 * self.number)

    data = encode(Doubled(4))
    assert msgpack.unpackb(data)[2] == [4]
    assert decode(data, Doubled).twice == 8
