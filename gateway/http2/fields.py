"""What both sides of HTTP/2 have in common: header fields, whose values are bytes there and text elsewhere; windows."""

from __future__ import annotations

from collections.abc import Iterable

from httpunk.http import HeaderMap

from mesh.application import Headers

__all__ = ["CONNECTION_WINDOW_BYTES", "STREAM_WINDOW_BYTES", "from_wire", "to_wire"]

# What may be under way and unread of one stream, and of a connection: streams that nobody reads leave room for others.
STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 64 * STREAM_WINDOW_BYTES

# They belong to HTTP/1.1, and an HTTP/2 message with one is malformed. Source: RFC 9113 section 8.2.2.
_OF_HTTP_1 = frozenset(
    {"connection", "host", "http2-settings", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)


def from_wire(fields: HeaderMap | None) -> list[tuple[str, str]]:
    """Give fields as text; bytes that are no UTF-8 come as surrogates."""
    if fields is None:
        return []
    return [(name, value.decode("utf-8", "surrogateescape")) for name, value in fields.items()]


def to_wire(fields: Headers | Iterable[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Give fields as HTTP/2 wants them, without those of HTTP/1.1; ``te`` may only ask for trailers."""
    return [
        (lowered, value.encode("utf-8", "surrogateescape"))
        for name, value in fields
        if (lowered := name.lower()) not in _OF_HTTP_1 and (lowered != "te" or value == "trailers")
    ]
