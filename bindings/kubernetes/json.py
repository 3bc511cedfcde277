"""JSON of an API server, which takes objects that are nested deeper than parsers of others go."""

from __future__ import annotations

import re
from typing import Any

import orjson

__all__ = ["is_deeper", "read_json"]

MAX_DEPTH = 200
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')


def read_json(data: bytes) -> Any:
    """Read what an API server sends; where it is too deep, null is in place of what is deepest.

    Raises:
        orjson.JSONDecodeError: It is no JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "depth" not in str(error):
            raise
    return orjson.loads(_shallow(data))


def _shallow(data: bytes) -> bytes:
    kept: list[bytes] = []
    depth = begin = 0
    for found in _TOKENS.finditer(data):
        if found[0] in (b"[", b"{"):
            depth += 1
            if depth == MAX_DEPTH:
                kept += data[begin : found.start()], b"null"
        elif found[0] in (b"]", b"}"):
            if depth == MAX_DEPTH:
                begin = found.end()
            depth -= 1
    return b"".join((*kept, data[begin:]))


def is_deeper(value: object, most: int) -> bool:
    """Tell whether lists and maps are within each other more than so many times."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)
