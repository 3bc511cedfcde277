"""Values in a header: JSON in ASCII, whatever bytes an application's own headers had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

import msgspec
import orjson

from mesh.errors import EventError

__all__ = ["pack", "readable", "unpack", "unpack_as"]


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


def unpack_as(shape: Any, text: str | None, what: str) -> Any:
    """Decode what another node packed, which may be hostile.

    Args:
        shape: A tuple of the values' types, or what is written as one.
        text: As it arrived; None = the header is missing.
        what: Is named in the error.

    Raises:
        EventError: It is not of that shape.
    """
    if text is not None:
        with suppress(ValueError, RecursionError):
            return _decoder(shape).decode(text)
        with suppress(ValueError, RecursionError):  # It may have surrogates, which only the standard decoder takes.
            return msgspec.convert(unpack(text), shape)
    raise EventError(f"malformed {what}")


@lru_cache(maxsize=64)
def _decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    """Make what decodes a shape: that takes longer than what it does then."""
    return msgspec.json.Decoder(shape)


def readable(text: str) -> str:
    """Show a header as text: its bytes that are no UTF-8 came as surrogates, which JSON does not take."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
