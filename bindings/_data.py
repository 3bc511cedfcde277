"""The data of a call of an output binding, as the adapters read it."""

from __future__ import annotations

import orjson

__all__ = ["text_of"]


def text_of(data: bytes) -> bytes:
    """Give a JSON string's text without its quotes, of ``null`` nothing, else the bytes as they are."""
    if data == b"null":
        return b""
    if data[:1] != b'"':
        return data
    try:
        text = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data
    return text.encode() if isinstance(text, str) else data
