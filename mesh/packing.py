"""Values in a header: JSON in ASCII, whatever bytes an application's own headers had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec
import orjson

from mesh.errors import EventError

__all__ = ["Packed", "pack", "readable", "unpack"]


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


class Packed:
    """What another node packed, which may be hostile: one for each shape, since making it takes long."""

    __slots__ = ("_decoder", "_what")

    def __init__(self, shape: Any, what: str) -> None:
        """Prepare.

        Args:
            shape: A tuple of the values' types, or what is written as one.
            what: Is named in errors.
        """
        self._decoder = msgspec.json.Decoder(shape)
        self._what = what

    def read(self, text: str | None) -> Any:
        """Read it as it arrived; None = the header is missing.

        Raises:
            EventError: It is not of that shape.
        """
        if text is not None:
            try:
                return self._decoder.decode(text)
            except (ValueError, RecursionError):
                with suppress(ValueError, RecursionError):  # It may have surrogates, which only this decoder takes.
                    return msgspec.convert(unpack(text), self._decoder.type)
        raise EventError(f"malformed {self._what}")


def readable(text: str) -> str:
    """Show a header as text: its bytes that are no UTF-8 came as surrogates, which JSON does not take."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
