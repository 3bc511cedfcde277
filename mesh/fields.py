"""Fields of HTTP that go on to another server, whoever wrote them: none of them says where the message ends.

Source: RFC 9110 sections 5.1, 5.5 (names, values), 7.6.1 (fields of one connection), RFC 9112 section 6 (framing).
"""

from __future__ import annotations

import re
from functools import lru_cache

from mesh.application import Headers
from mesh.errors import BadArgumentError

__all__ = ["BREAKS_OFF", "CONNECTION_FIELDS", "TOKEN", "check_fields", "declared_length", "sendable"]

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 section 5.6.2: names of headers, verbs."""
BREAKS_OFF = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What no value of a field can hold."""
CONNECTION_FIELDS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""What whoever sends a message says itself."""
MAX_REMEMBERED = 64
_UNSENDABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")  # Bytes come as U+DC80 to U+DCFF.


def sendable(headers: Headers) -> Headers:
    """Leave out what the sender of a message says itself; this is for each call, and costs about 0.1 µs a field.

    Raises:
        BadArgumentError: A name, or a value, cannot stand in a message.
    """
    kept = [each for each in headers if (_goes_on if len(each[0]) <= MAX_REMEMBERED else _is_sent)(each[0])]
    for name, value in kept:
        if not value.isprintable() and (found := _UNSENDABLE.search(value)) is not None:
            raise BadArgumentError(f"the header {name[:100]} cannot hold the character U+{ord(found[0]):04X}")
    return kept


def check_fields(headers: Headers) -> None:
    """Refuse what could not be sent on.

    Raises:
        BadArgumentError: There is such a field; metadata of gRPC, and what other nodes send, may have any.
    """
    sendable(headers)


def declared_length(headers: Headers) -> int | None:
    """Give the length in bytes that a body is said to have.

    Raises:
        BadArgumentError: It is no length, or there are two.
    """
    told = {value for name, value in headers if len(name) == 14 and name.lower() == "content-length"}
    if not told:
        return None
    length = told.pop()
    if told or len(length) > 18 or not (length.isascii() and length.isdigit()):
        raise BadArgumentError("the header Content-Length is no length")
    return int(length)


def _is_sent(name: str) -> bool:
    if TOKEN.fullmatch(name) is None:
        raise BadArgumentError(f"a header must not be named {name[:100]!r}")
    return name.lower() not in CONNECTION_FIELDS


_goes_on = lru_cache(maxsize=1024)(_is_sent)
