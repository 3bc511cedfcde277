"""gRPC over HTTP/2: how messages, statuses, deadlines and metadata are written.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2), gRPC compression, gRPC status codes.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from urllib.parse import quote, unquote

from gateway.status import Code

__all__ = [
    "CONTENT_TYPE",
    "PREFIX_BYTES",
    "Reader",
    "StatusError",
    "deadline_of",
    "framed",
    "is_grpc",
    "is_type",
    "status_fields",
    "status_of",
]

CONTENT_TYPE = "application/grpc"
PREFIX_BYTES = 5
CUT_OFF = "the body ends in the middle of a message"
# Clients take 8 KiB of metadata in all.
MAX_TEXT = 2048
MAX_DETAILS = 4096
# Everything that may stand in a header field but a percent sign; Source: PROTOCOL-HTTP2, "Percent-Byte-Unencoded".
_PLAIN = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])\Z")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_WINDOWS = {"identity": 0, "deflate": 15, "gzip": 31}  # For zlib.


class StatusError(Exception):
    """A call ended with a status that is not OK.

    Attributes:
        code: The status.
        message: For people.
        details: A serialized ``google.rpc.Status``; empty when there is none.
    """

    def __init__(self, code: Code, message: str, details: bytes = b"") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details

    @property
    def told(self) -> tuple[Code, str, bytes]:
        """All of it."""
        return self.code, self.message, self.details


def framed(message: bytes) -> bytes:
    """Write a message, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def status_fields(code: int, message: str = "", details: bytes = b"") -> list[tuple[str, str]]:
    """Write a status as the fields of trailers."""
    fields = [("grpc-status", str(int(code)))]
    if message:
        fields.append(("grpc-message", _text(message)))
    if details and len(details) <= MAX_DETAILS:
        fields.append(("grpc-status-details-bin", base64.b64encode(details).decode().rstrip("=")))
    return fields


def _text(message: str) -> str:
    """Write a text in percent encoding, and no more of it than clients take with all their metadata."""
    written = quote(message[:MAX_TEXT], safe=_PLAIN, errors="replace")
    if len(written) <= MAX_TEXT:
        return written
    return quote(unquote(written[: written.rfind("%", 0, MAX_TEXT)], errors="ignore"), safe=_PLAIN)


def status_of(fields: Iterable[tuple[str, str]]) -> StatusError | None:
    """Read a status from trailers; None = OK."""
    found = dict(fields)
    text = found.get("grpc-status")
    if text is None:
        return StatusError(Code.UNKNOWN, "the answer has no grpc-status")
    try:
        code = Code(int(text))
    except ValueError:
        code = Code.UNKNOWN
    if code is Code.OK:
        return None
    return StatusError(code, unquote(found.get("grpc-message", "")), unbase64(found.get("grpc-status-details-bin", "")))


def unbase64(text: str) -> bytes:
    """Read a binary field; what is none is empty."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def deadline_of(fields: Mapping[str, str]) -> float | None:
    """Read ``grpc-timeout`` as Unix time in seconds; None = there is none.

    Raises:
        StatusError: It is none that gRPC knows.
    """
    text = fields.get("grpc-timeout")
    if text is None:
        return None
    found = _TIMEOUT.match(text)
    if found is None:
        raise StatusError(Code.INTERNAL, f"the metadata grpc-timeout is not a timeout: {text[:40]!r}")
    return time.time() + int(found[1]) * _UNITS[found[2]]


def is_grpc(fields: Iterable[tuple[str, str]]) -> bool:
    """Tell whether a message is of gRPC, by its content type."""
    return any(name.lower() == "content-type" and is_type(value) for name, value in fields)


def is_type(kind: str) -> bool:
    """Tell whether a content type is of gRPC; gRPC-Web is another protocol."""
    return kind == CONTENT_TYPE or kind.startswith((CONTENT_TYPE + "+", CONTENT_TYPE + ";"))


class Reader:
    """Reads the messages of a body that arrives in parts."""

    def __init__(self, parts: AsyncIterator[bytes], limit_bytes: int, encoding: str = "identity") -> None:
        """Read from ``parts``; messages are at most ``limit_bytes`` long, also when they are unpacked."""
        self._parts = parts
        self._limit_bytes = limit_bytes
        self._encoding = encoding
        self._data = bytearray()

    async def only(self) -> bytes:
        """Give the one message of the body, once all of that is here.

        Raises:
            StatusError: It is not one message, or too large, or broken.
        """
        self._check_encoding()
        whole = b""
        async for part in self._parts:
            if self._data or whole:
                self._data += whole + part
                whole = b""
            else:
                whole = part  # Most are here at once.
            begun = whole or self._data
            if len(begun) >= PREFIX_BYTES and len(begun) > PREFIX_BYTES + self._size(begun):
                raise StatusError(Code.INTERNAL, "the call has more than one message")
        begun = whole or self._data
        if len(begun) < PREFIX_BYTES or len(begun) < PREFIX_BYTES + self._size(begun):
            raise StatusError(Code.INTERNAL, CUT_OFF if begun else "the call has no message")
        message = bytes(begun[PREFIX_BYTES:])
        return self._unpacked(message) if begun[0] else message

    async def read(self) -> bytes | None:
        """Give the next message; None at the end.

        Raises:
            StatusError: It is too large, or broken.
        """
        self._check_encoding()
        data = self._data
        while len(data) < PREFIX_BYTES or len(data) < PREFIX_BYTES + self._size(data):
            part = await anext(self._parts, None)
            if part is None:
                if data:
                    raise StatusError(Code.INTERNAL, CUT_OFF)
                return None
            data += part
        packed, end = data[0], PREFIX_BYTES + self._size(data)
        message = bytes(data[PREFIX_BYTES:end])
        del data[:end]
        return self._unpacked(message) if packed else message

    def _check_encoding(self) -> None:
        if self._encoding not in _WINDOWS:
            text = f"unknown grpc-encoding {self._encoding[:40]!r}; known: {', '.join(_WINDOWS)}"
            raise StatusError(Code.UNIMPLEMENTED, text)

    def _size(self, begun: bytes | bytearray) -> int:
        """Give the size of the message that has begun."""
        if begun[0] > 1:
            raise StatusError(Code.INTERNAL, "the body is not made of gRPC messages")
        size = int.from_bytes(begun[1:PREFIX_BYTES], "big")
        if size > self._limit_bytes:
            raise self._too_large(size)
        return size

    def _too_large(self, size: int) -> StatusError:
        text = f"a message of {size} bytes is larger than {self._limit_bytes} bytes (--max-body-size)"
        return StatusError(Code.RESOURCE_EXHAUSTED, text)

    def _unpacked(self, message: bytes) -> bytes:
        window = _WINDOWS[self._encoding]
        if not window:
            raise StatusError(Code.INTERNAL, "a message is compressed, and grpc-encoding does not say how")
        unpacking = zlib.decompressobj(window)
        try:
            whole = unpacking.decompress(message, self._limit_bytes + 1)
        except zlib.error as error:
            raise StatusError(Code.INTERNAL, f"a message cannot be unpacked: {error}") from None
        if len(whole) > self._limit_bytes:
            raise self._too_large(len(whole))
        if not unpacking.eof:
            raise StatusError(Code.INTERNAL, "a compressed message is cut off")
        return whole
