"""Values in a header: JSON in ASCII, whatever bytes an application's own headers had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

import orjson

__all__ = ["pack", "readable", "unpack"]


def pack(*values: object) -> str:
    """Encode as JSON in ASCII."""
    try:
        text = orjson.dumps(values).decode()
        if text.isascii():
            return text
    except orjson.JSONEncodeError:
        pass  # Header bytes that are no UTF-8 come as surrogates, which only the standard encoder takes.
    return json.dumps(values, separators=(",", ":"))


def unpack(text: str) -> Sequence[object]:
    """Decode what ``pack`` made.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return cast("Sequence[object]", orjson.loads(text))
    except orjson.JSONDecodeError:
        return cast("Sequence[object]", json.loads(text))


def readable(text: str) -> str:
    """Show a header as text: its bytes that are no UTF-8 came as surrogates, which JSON does not take."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
