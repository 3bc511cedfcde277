"""What is told of headers and bodies: without what is a secret, and no more than was asked for."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from mesh.passing import Part, Passing
from mesh.tap.sight import Content

__all__ = ["HIDDEN", "content", "is_secret"]

HIDDEN = "(hidden)"
SECRET_BLOCKS = frozenset({"crypto", "secrets"})
MAX_HEADERS = 100
MAX_DEPTH = 20
_SECRET = re.compile(
    r"authorization|cookie|token|secret|passw|passphrase|credential|api-?key|access-?key|private-?key|sas-?key|signature"
    r"|proof|proven|mesh-identity|session"
)


def is_secret(name: str) -> bool:
    """Tell whether a header, or an entry of metadata, is named as what nobody else may see."""
    return _SECRET.search(name.lower().replace("_", "-")) is not None


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
        headers = tuple((name, HIDDEN if is_secret(name) else value) for name, value in part.headers[:MAX_HEADERS])
    if part.value is not None:
        if secret or not values:
            return Content(headers, "application/json")
        body = orjson.dumps(_plain(part.value, MAX_DEPTH), option=orjson.OPT_NON_STR_KEYS)
        return Content(headers, "application/json", len(body), body[:limit], len(body) > limit)
    if part.body is None:
        return Content(headers, kind)
    size = len(part.body)
    if secret or not values:
        return Content(headers, kind, size)
    return Content(headers, kind, size, bytes(part.body[:limit]), size > limit)


def _plain(value: Any, depth: int) -> Any:
    """Write arguments or a result as what JSON has."""
    if value is None or isinstance(value, (bool, int, float)):
        return value if not isinstance(value, int) or -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
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
