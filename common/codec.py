"""msgpack on the wire, typed dataclasses in the code, nothing in between.

A message is ``[SCHEMA_VERSION, tag, field, field, ...]``. Types are checked while decoding, from the
dataclass's own annotations; token ids travel as one little-endian uint32 blob. There is no pickle. Last fields that
have defaults may be missing: that is how a message grows and old ones stay readable. Fields that a class computes
itself (``init=False``) do not travel.
"""

import sys
import types
import typing
from array import array
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

import msgpack

from common.errors import CodecError, MessageTooLarge, ProfileError, SchemaVersionError

SCHEMA_VERSION = 1
MAX_MESSAGE_BYTES = 8 * 1024 * 1024

Tokens = tuple[int, ...]
"""Token ids or other unsigned 32-bit numbers; one blob on the wire."""

M = TypeVar("M")
Convert = Callable[[Any], Any]

_by_tag: dict[str, type] = {}
_encoders: dict[type, Convert] = {}
_decoders: dict[type, Convert] = {}


def message(cls: type[M]) -> type[M]:
    """Class decorator: the dataclass may stand at the top of an encoded message, tagged by its name."""
    _by_tag[cls.__name__] = cls
    return cls


def encode(value: object) -> bytes:
    """Encode a registered message.

    Raises CodecError when a field has no wire form, MessageTooLarge for what nobody would decode.
    """
    cls = type(value)
    try:
        packed: bytes = msgpack.packb([SCHEMA_VERSION, cls.__name__, _encoder(cls)(value)], use_bin_type=True)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CodecError(f"{cls.__name__} can't be encoded: {error}") from error
    if len(packed) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"{cls.__name__} of {len(packed)} bytes is over the bound of {MAX_MESSAGE_BYTES}")
    return packed


def decode(data: bytes, expected: type[M], max_bytes: int = MAX_MESSAGE_BYTES) -> M:
    """Decode a message of type ``expected``.

    Raises MessageTooLarge over ``max_bytes``, SchemaVersionError for another version, CodecError otherwise.
    """
    value = decode_any(data, max_bytes)
    if not isinstance(value, expected):
        raise CodecError(f"expected {expected.__name__}, got {type(value).__name__}")
    return value


def decode_any(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> object:
    """Decode a message of any registered type; raises as :func:`decode`."""
    if len(data) > max_bytes:
        raise MessageTooLarge(f"message of {len(data)} bytes is over the bound of {max_bytes}")
    try:
        raw = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:
        raise CodecError(f"not a msgpack message: {type(error).__name__}") from error
    if not isinstance(raw, list) or len(raw) != 3:
        raise CodecError("a message is [version, tag, fields]")
    version, tag, body = raw
    if version != SCHEMA_VERSION:
        raise SchemaVersionError(f"schema version {version!r}, this build reads {SCHEMA_VERSION}")
    cls = _by_tag.get(tag) if isinstance(tag, str) else None
    if cls is None:
        raise CodecError(f"unknown message {tag!r}")
    return _decoder(cls)(body)


def pack_tokens(tokens: Tokens) -> bytes:
    """Token ids as little-endian uint32; raises OverflowError or TypeError outside of 0..2^32-1."""
    blob = array("I", tokens)
    if sys.byteorder == "big":  # pragma: no cover
        blob.byteswap()
    return blob.tobytes()


def unpack_tokens(blob: bytes) -> Tokens:
    """Inverse of :func:`pack_tokens`; raises CodecError when the length is not a multiple of four."""
    if not isinstance(blob, bytes) or len(blob) % 4:
        raise CodecError("token ids must be a blob of uint32")
    tokens = array("I")
    tokens.frombytes(blob)
    if sys.byteorder == "big":  # pragma: no cover
        tokens.byteswap()
    return tuple(tokens)


def _encoder(cls: type) -> Convert:
    if cls not in _encoders:
        hints = typing.get_type_hints(cls)
        parts = [(field.name, _to_wire(hints[field.name])) for field in fields(cls) if field.init]
        _encoders[cls] = lambda value: [convert(getattr(value, name)) for name, convert in parts]
    return _encoders[cls]


def _decoder(cls: type) -> Convert:
    if cls not in _decoders:
        hints = typing.get_type_hints(cls)
        given = [field for field in fields(cls) if field.init]
        parts = [(field.name, _from_wire(hints[field.name])) for field in given]
        fewest = sum(field.default is MISSING and field.default_factory is MISSING for field in given)

        def build(raw: Any) -> Any:
            if not isinstance(raw, list) or not fewest <= len(raw) <= len(parts):
                needed = f"{fewest} to {len(parts)}" if fewest < len(parts) else f"{fewest}"
                raise CodecError(f"{cls.__name__} needs {needed} fields")
            name = ""
            try:
                values = []
                for (name, convert), item in zip(parts, raw, strict=False):  # noqa: B007 - an error names the field
                    values.append(convert(item))
            except CodecError as error:
                raise CodecError(f"{cls.__name__}.{name}: {error}") from None
            try:
                return cls(*values)
            except (ValueError, ProfileError) as error:
                raise CodecError(f"{cls.__name__}: {error}") from error

        _decoders[cls] = build
    return _decoders[cls]


def _to_wire(hint: Any) -> Convert:
    kind, arguments = _shape(hint)
    if kind == "optional":
        inner = _to_wire(arguments)
        return lambda value: None if value is None else inner(value)
    if kind == "tokens":
        return pack_tokens
    if kind == "tuple":
        item = _to_wire(arguments)
        return lambda values: [item(value) for value in values]
    if kind == "dataclass":
        return lambda value: _encoder(arguments)(value)
    if kind == "enum":
        return lambda value: value.value
    if kind == "map":
        return dict if arguments is not float else _floats
    return lambda value: value


def _from_wire(hint: Any) -> Convert:
    kind, arguments = _shape(hint)
    if kind == "optional":
        inner = _from_wire(arguments)
        return lambda raw: None if raw is None else inner(raw)
    if kind == "tokens":
        return unpack_tokens
    if kind == "tuple":
        item = _from_wire(arguments)

        def items(raw: Any) -> Any:
            if not isinstance(raw, list):
                raise CodecError("expected a list")
            return tuple(item(value) for value in raw)

        return items
    if kind == "dataclass":
        return lambda raw: _decoder(arguments)(raw)
    if kind == "enum":
        return lambda raw: _enum(arguments, raw)
    if kind == "map":
        return _mapping(None if arguments is Any else _scalar(arguments))
    return _scalar(arguments)


def _shape(hint: Any) -> tuple[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and arguments[1] is type(None):
        return "optional", arguments[0]
    if hint == Tokens:
        return "tokens", None
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return "tuple", arguments[0]
    if origin in (dict, Mapping):
        return "map", arguments[1]
    if isinstance(hint, type) and is_dataclass(hint):
        return "dataclass", hint
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "enum", hint
    if hint in (int, float, str, bool, bytes):
        return "scalar", hint
    raise TypeError(f"{hint!r} has no wire form")


def _scalar(wanted: type) -> Convert:
    def check(raw: Any) -> Any:
        if wanted is float and type(raw) is int:
            return float(raw)
        if type(raw) is not wanted:
            raise CodecError(f"expected {wanted.__name__}, got {type(raw).__name__}")
        return raw

    return check


def _enum(cls: type[Enum], raw: Any) -> Enum:
    try:
        return cls(raw)
    except ValueError:
        raise CodecError(f"{raw!r} is not a {cls.__name__}") from None


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _mapping(value: Convert | None) -> Convert:
    def convert(raw: Any) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise CodecError("expected a map with string keys")
        if not raw:  # as most are
            return raw
        if not all(isinstance(key, str) for key in raw):
            raise CodecError("expected a map with string keys")
        return {key: value(item) for key, item in raw.items()} if value else raw

    return convert
