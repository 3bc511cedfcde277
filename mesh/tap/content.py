"""What is told of headers and bodies: without what is a secret, and no more than was asked for."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_plus

import msgspec
import orjson

from mesh.event import CLOUDEVENTS_JSON
from mesh.passing import Headers, Part, Passing
from mesh.tap.sight import Content

__all__ = ["HIDDEN", "content", "is_secret", "query"]

HIDDEN = "(hidden)"
SECRET_BLOCKS = frozenset({"crypto", "secrets"})
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
MAX_DEPTH = 20
MAX_DIGITS = 19
_SECRET = re.compile(
    r"authorization|cookie|token|secret|passw|passphrase|credential|api-?key|access-?key|private-?key|sas-?key|signature"
    r"|proof|proven|mesh-identity|session|(?<![a-z])(?:sig|pwd|jwt|x-auth)(?![a-z])"
)
_LOGIN = re.compile(r"://[^/@\s]+@")
_PARAMETER = re.compile(r"[?&;]([^=&;\s]+)=[^&;\s]")


def is_secret(name: str) -> bool:
    """Tell whether a header, or an entry of metadata, is named as what nobody else may see."""
    return _SECRET.search(name.lower().replace("_", "-")) is not None


def _holds_secret(value: str) -> bool:
    """Tell whether a header has a URL with a login, or with a parameter that is named as a secret."""
    if "=" not in value and "@" not in value:
        return False
    named = any(is_secret(unquote_plus(each)) for each in _PARAMETER.findall(value))
    return named or _LOGIN.search(value) is not None


def query(text: str) -> str:
    """Give what is told of a request's query: all but the values of parameters that are named as secrets."""
    return "&".join(
        f"{name}={HIDDEN}" if equals and is_secret(unquote_plus(name)) else f"{name}{equals}{value}"
        for name, equals, value in (each.partition("=") for each in text.split("&"))
    )


def content(passing: Passing, part: Part | None, limit: int, *, values: bool) -> Content | None:
    """Give what is told of a request or an answer.

    Args:
        passing: Of which it is.
        part: It; None = there is none.
        limit: Bytes of a body.
        values: Whether headers and bodies are told at all; else their size is.
    """
    if part is None:
        return None
    secret = passing.block in SECRET_BLOCKS
    kind = part.content_type or next((value for name, value in part.headers if name.lower() == "content-type"), "")
    headers = None
    if values:
        headers = _told(part.headers)
    if part.value is not None:
        if secret or not values:
            return Content(headers, "application/json")
        text = orjson.dumps(_plain(part.value, MAX_DEPTH))
        return Content(headers, "application/json", len(text), text[:limit], len(text) > limit)
    if part.body is None:
        return Content(headers, kind, _length(part.headers))
    body: bytes = part.body
    if secret or not values:
        return Content(headers, kind, len(body))
    if part.event is not None and (event := part.event()) is not None:
        kind, body = CLOUDEVENTS_JSON, event
    return Content(headers, kind, len(body), bytes(body[:limit]), len(body) > limit)


def _told(headers: Headers) -> tuple[tuple[str, str], ...]:
    """Give what is told of header fields, the first of them where there are many."""
    told: list[tuple[str, str]] = []
    left = MAX_HEADER_BYTES
    for name, value in headers[:MAX_HEADERS]:
        name, value = _text(name), HIDDEN if is_secret(name) or _holds_secret(value) else _text(value)
        left -= len(name) + len(value)
        if left < 0:
            break
        told.append((name, value))
    return tuple(told)


def _length(headers: Headers) -> int:
    """Give the size of a stream that says it; -1 for one that does not."""
    text = next((value for name, value in headers if name.lower() == "content-length"), "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS else -1


def _text(text: str) -> str:
    """Give a text that is nothing but that: not of a class of a client's, and without half a character."""
    return text.encode("utf-8", "replace").decode()


def _plain(value: Any, depth: int) -> Any:
    """Write arguments or a result as what JSON has."""
    if value is None or isinstance(value, (bool, int, float)):
        return value if not isinstance(value, int) or -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _read(bytes(value))
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {str(key): HIDDEN if is_secret(str(key)) else _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        names: Sequence[str] = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = [each.name for each in dataclasses.fields(value)]
    elif isinstance(value, (Sequence, frozenset, set)):
        return [_plain(item, depth - 1) for item in value]
    else:
        return f"({type(value).__name__})"
    return {name: _plain(getattr(value, name), depth - 1) for name in names}


def _read(data: bytes) -> Any:
    """Give bytes of an application as JSON where they are some, else as text, else as base64."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()
