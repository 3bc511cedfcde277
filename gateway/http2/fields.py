"""What both sides of HTTP/2 have in common: header fields, whose values are bytes there and text elsewhere; windows.

Source: RFC 9113 sections 4.1 (frames), 6.5.2 (the size of fields), 8.2.2 (those of HTTP/1.1).
"""

from __future__ import annotations

from collections.abc import Iterable

from httpunk.http import HeaderMap

from mesh.application import Headers

__all__ = [
    "CONNECTION_WINDOW_BYTES",
    "LIST_FACTOR",
    "SECTION_FACTOR",
    "STREAM_WINDOW_BYTES",
    "Frames",
    "from_wire",
    "size_of",
    "to_wire",
    "writable",
]

# What may be under way and unread of one stream, and of a connection: streams that nobody reads leave room for others.
STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 64 * STREAM_WINDOW_BYTES

# The library drops fields above its limit and says nothing. So what is sent to us never reaches that: a section of so
# many times the largest one ends the connection, and even unpacked (RFC 7541 appendix B: 8 bits of 5 at least) it is
# below the library's. What lies between is seen by whoever reads the fields.
SECTION_FACTOR, LIST_FACTOR = 4, 8
HEAD_BYTES, HEADERS, CONTINUATION = 9, 1, 9
FIELD_BYTES = 32  # What a field counts beside its text.

# They belong to HTTP/1.1, and an HTTP/2 message with one is malformed.
_OF_HTTP_1 = frozenset(
    {"connection", "host", "http2-settings", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)


def from_wire(fields: HeaderMap | None) -> list[tuple[str, str]]:
    """Give fields as text; bytes that are no UTF-8 come as surrogates."""
    if fields is None:
        return []
    return [(name, value.decode("utf-8", "surrogateescape")) for name, value in fields.items()]


def size_of(fields: HeaderMap | None) -> int:
    """Count fields as limits of HTTP/2 do."""
    return sum(len(name) + len(value) + FIELD_BYTES for name, value in fields.items()) if fields is not None else 0


def to_wire(fields: Headers | Iterable[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Give fields as HTTP/2 wants them, without those of HTTP/1.1; ``te`` may only ask for trailers."""
    return [
        (lowered, value.encode("utf-8", "surrogateescape"))
        for name, value in fields
        if (lowered := name.lower()) not in _OF_HTTP_1 and (lowered != "te" or value == "trailers")
    ]


def writable(text: str) -> bool:
    """Tell whether a target, or an authority, could stand in a request of HTTP/1.1, whose parser takes no other."""
    return text.isascii() and text.isprintable() and " " not in text


class Frames:
    """Follows what the other side sends just enough to know how long its header sections are."""

    __slots__ = ("_head", "_left", "_limit", "_section")

    def __init__(self, limit_bytes: int, before: int = 0) -> None:
        """Begin, perhaps with what comes before the first frame."""
        self._limit = limit_bytes
        self._left = before  # Of what is not the head of a frame.
        self._head = b""
        self._section = 0

    def take(self, data: bytes) -> bool:
        """Tell whether no section is larger than the limit."""
        at, size = self._left, len(data)
        if self._head:
            data, size = self._head + data, size + len(self._head)
        while at + HEAD_BYTES <= size:
            length, kind = data[at] << 16 | data[at + 1] << 8 | data[at + 2], data[at + 3]
            if kind == HEADERS:
                self._section = length
            elif kind == CONTINUATION:
                self._section += length
            if self._section > self._limit:  # One frame may be that alone.
                return False
            at += HEAD_BYTES + length
        self._head = data[at:]
        self._left = max(0, at - size)
        return True
