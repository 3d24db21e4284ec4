"""How Redis's replies become messages.

A record is a hash with ``request``, ``state``, ``attempt``, ``deaths``, ``tier``, ``arrival``, ``reply_to``, ``entry``
(in its tier's stream), ``decision``, ``deferred_s``, ``prefill_worker``, ``decode_worker``, ``holder`` (the worker that
has it), ``work`` (for the holder), ``reported`` (attempt whose first token was reported), ``end``, and a field
``n:<name>`` for each note; its tokens are a string of their own. What scripts write themselves stands in names of
fields, so that Lua need not know the codec: ``frame:<tokens to drop>``, ``end:<attempt>:<position>:<id>``,
``cancel:<attempt>:<id>``, ``<attempt>:<generated>:<ended>:<time>:<id>``.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from common.bus.interface import Claim
from common.bus.redis_client import Entry, pairs
from common.codec import decode, decode_any, unpack_tokens
from common.errors import CodecError
from common.messages import (
    Cancel,
    Control,
    Decided,
    Decision,
    End,
    Frame,
    Progress,
    Record,
    Reply,
    Request,
    State,
)

T = TypeVar("T")

log = logging.getLogger(__name__)


def record_from(fields: Sequence[bytes], tokens: bytes) -> Record | None:
    """A record from its hash; None if there is none. Raises CodecError if it is corrupt."""
    found = dict(pairs(fields))
    if "request" not in found:
        return None
    try:
        state, attempt = State(_text(found, "state")), int(_text(found, "attempt"))
        notes = {name[2:]: float(value) for name, value in found.items() if name.startswith("n:")}
    except ValueError as error:
        raise CodecError(f"corrupt record: {error}") from None
    return Record(
        request=decode(found["request"], Request),
        state=state,
        attempt=attempt,
        decision=decode(found["decision"], Decision) if "decision" in found else None,
        generated=unpack_tokens(tokens),
        end=decode(found["end"], End) if "end" in found else None,
        notes=notes,
        prefill_worker=_text(found, "prefill_worker") or None,
        decode_worker=_text(found, "decode_worker") or None,
    )


def claim_from(
    entry: bytes, request: bytes, attempt: bytes, deferred_s: bytes, tokens: bytes, first_token_s: bytes
) -> Claim:
    """A claim from the answer of a script; raises CodecError if the record is corrupt."""
    try:
        number, since_s = int(attempt), float(deferred_s) if deferred_s else None
        first_s = float(first_token_s) if first_token_s else None
    except ValueError as error:
        raise CodecError(f"corrupt record: {error}") from None
    return Claim(entry.decode(), decode(request, Request), number, unpack_tokens(tokens), since_s, first_s)


def replies_from(entries: Iterable[Entry]) -> list[Reply]:
    """Frames and decisions of an api's stream; what can't be read is left out."""
    return _each(entries, _reply)


def controls_from(entries: Iterable[Entry]) -> list[Control]:
    """Control messages of a process; what can't be read is left out."""
    return _each(entries, _control)


def progress_from(entries: Iterable[Entry]) -> list[Progress]:
    """News for the planner; what can't be read is left out."""
    return _each(entries, _progress)


def _each(entries: Iterable[Entry], parse: Callable[[str, str, bytes], T]) -> list[T]:
    messages = []
    for entry, fields in entries:
        for name, value in pairs(fields):
            try:
                messages.append(parse(entry, name, value))
            except (CodecError, ValueError) as error:
                log.warning("unreadable entry %s: %s", entry, error)
    return messages


def _reply(entry: str, name: str, value: bytes) -> Reply:
    kind, _, rest = name.partition(":")
    if kind == "frame":
        frame, skip = decode(value, Frame), int(rest)
        return replace(frame, position=frame.position + skip, tokens=frame.tokens[skip:]) if skip else frame
    if kind == "end":
        attempt, position, request_id = rest.split(":", 2)
        time_s = int(entry.partition("-")[0]) / 1000
        return Frame(request_id, int(attempt), int(position), (), time_s, decode(value, End))
    return decode(value, Decided)


def _control(_entry: str, name: str, value: bytes) -> Control:
    kind, _, rest = name.partition(":")
    if kind == "cancel":
        attempt, _, request_id = rest.partition(":")
        return Cancel(request_id, int(attempt), value.decode())
    message = decode_any(value)
    if not isinstance(message, Control):
        raise CodecError(f"{type(message).__name__} is not a control message")
    return message


def _progress(_entry: str, name: str, value: bytes) -> Progress:
    attempt, generated, ended, time_s, request_id = name.split(":", 4)
    return Progress(request_id, int(attempt), value.decode(), int(generated), ended == "1", float(time_s))


def _text(fields: Mapping[str, bytes], name: str) -> str:
    return fields.get(name, b"").decode(errors="replace")
