"""What the data of a call mean to bindings that take a text."""

from __future__ import annotations

import re

import orjson

from mesh.blocks.binding_contract import BindingError

__all__ = ["sendable", "text_of"]

# What XML 1.0 cannot hold, neither can a message.
_NO_TEXT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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


def sendable(data: bytes, what: str) -> str:
    """Give data as a text that a message can hold; raises ``BindingError``."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise BindingError(f"{what} must be text in UTF-8") from None
    if found := _NO_TEXT.search(text):
        raise BindingError(f"{what} must be text, and U+{ord(found[0]):04X} is none that a message can hold")
    return text
