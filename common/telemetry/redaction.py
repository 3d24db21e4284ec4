"""What may never reach a log: secrets, and what users wrote or were answered."""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any

REDACTED = "[redacted]"

_SECRET_PARTS = (
    *("authorization", "api_key", "apikey", "private_key", "access_key"),
    *("password", "passwd", "secret", "cookie", "credential"),
)
_SECRET_NAMES = ("token", "auth")
_CONTENT_NAMES = frozenset(
    {
        *("prompt", "prompts", "prompt_token_ids", "token_ids", "stop_token_ids", "tokens", "generated"),
        *("text", "messages", "content", "completion", "output", "outputs", "input", "inputs"),
        *("body", "delta", "stop", "arguments"),
    }
)
_MAX_DEPTH = 6
_MAX_ITEMS = 32
_MAX_NUMBERS = 8
_MAX_CHARACTERS = 16_384

# every repetition below is bounded or can't be split in two ways, so that no text takes long

_URL_PASSWORD = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]{0,30}://[^\s:/?#@]{0,256}:)[^\s/?#]{1,512}@", re.IGNORECASE)
_CREDENTIALS = re.compile(r"\b(?P<head>bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}", re.IGNORECASE)
_NAMED_SECRET = re.compile(
    r"(?P<head>\b[\w-]{0,40}?(?:api[_-]?key|password|passwd|secret|(?<![a-z])token)['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&)\]}]+",
    re.IGNORECASE,
)
_NUMBERS = re.compile(rf"[\[(]\s*(?:-?\d+\s*,\s*){{{_MAX_NUMBERS},}}-?\d*\s*[\])]")
_NAMED_TEXT = re.compile(
    r"(?P<head>\b(?:prompt|text|content|input|input_value|completion)['\"]?\s*[=:]\s*)(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")",
    re.IGNORECASE,
)


def redact(name: str, value: Any, depth: int = 0) -> Any:
    """The value as it may be logged under this name; numbers and None say no more than a size and pass."""
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(name):
        return REDACTED
    if isinstance(value, int | float):
        return value
    if _normal(name) in _CONTENT_NAMES:
        return f"[{len(value)} left out]" if isinstance(value, Sequence | Set) else REDACTED
    if isinstance(value, str):
        return redact_text(value)
    return _redact_structure(value, depth)


def redact_text(text: str) -> str:
    """Text without passwords in URLs, credentials, named secrets, quoted prompts and runs of token ids; bounded."""
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[:_MAX_CHARACTERS]} [{len(text) - _MAX_CHARACTERS} characters left out]"
    for pattern in (_URL_PASSWORD, _CREDENTIALS, _NAMED_SECRET, _NAMED_TEXT):
        text = pattern.sub(lambda match: match["head"] + REDACTED + ("@" if match[0].endswith("@") else ""), text)
    return _NUMBERS.sub(REDACTED, text)


def _redact_structure(value: Any, depth: int) -> Any:
    if depth >= _MAX_DEPTH:
        return f"[{type(value).__name__}]"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: redact(field.name, getattr(value, field.name), depth + 1) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): redact(str(key), item, depth + 1) for key, item in list(value.items())[:_MAX_ITEMS]}
    if isinstance(value, Sequence | Set):
        if len(value) > _MAX_NUMBERS and all(isinstance(item, int) for item in value):
            return f"[{len(value)} left out]"
        return [redact("", item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    return redact_text(str(value))


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")


def _is_secret(name: str) -> bool:
    normal = _normal(name)
    return (
        any(part in normal for part in _SECRET_PARTS)
        or normal in _SECRET_NAMES
        or normal.endswith(tuple("_" + part for part in _SECRET_NAMES))
    )
