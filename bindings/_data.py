"""What the data of a call mean to bindings that take a text."""

from __future__ import annotations

import orjson

__all__ = ["text_of"]


def text_of(data: bytes) -> bytes:
    """Give the text of a JSON string without its quotes, of ``null`` nothing, else the bytes as they are."""
    if data == b"null":
        return b""
    if data[:1] != b'"':
        return data
    try:
        text = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data
    return text.encode() if isinstance(text, str) else data
