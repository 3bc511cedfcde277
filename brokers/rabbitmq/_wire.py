"""AMQP 0-9-1 as bytes: frames, methods, tables and properties.

Only what the adapter uses; names of functions are those of the specification's methods. Field
types are RabbitMQ's own reading of the specification (``S`` is text here, ``l`` a signed 64-bit
integer).

Source: amqp0-9-1.xml; www.rabbitmq.com/amqp-0-9-1-errata.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

__all__ = ["Properties", "ProtocolError"]

PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END: Final = 0xCE
END: Final = b"\xce"
FRAME_OVERHEAD: Final = 8
TEXT: Final = ord("S")
HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

CONNECTION_START, CONNECTION_TUNE, CONNECTION_OPEN_OK = 0x000A000A, 0x000A001E, 0x000A0029
CONNECTION_CLOSE, CONNECTION_CLOSE_OK = 0x000A0032, 0x000A0033
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = 0x000A003C, 0x000A003D
CHANNEL_OPEN_OK, CHANNEL_CLOSE, CHANNEL_CLOSE_OK = 0x0014000B, 0x00140028, 0x00140029
QUEUE_DECLARE_OK = 0x0032000B
BASIC_CANCEL, BASIC_RETURN, BASIC_DELIVER = 0x003C001E, 0x003C0032, 0x003C003C
BASIC_ACK, BASIC_NACK = 0x003C0050, 0x003C0078

frame_head: Final = struct.Struct(">BHI")
_long: Final = struct.Struct(">I")
_short: Final = struct.Struct(">H")
_longlong: Final = struct.Struct(">Q")
_content_head: Final = struct.Struct(">HHQH")
_method_head: Final = struct.Struct(">BHII")

Field = object
Table = Mapping[str, Field]


class ProtocolError(Exception):
    """The other side does not speak AMQP as we know it."""


# Values


def shortstr(text: str) -> bytes:
    """Encode up to 255 bytes of text."""
    raw = text.encode()
    return bytes((len(raw),)) + raw


def longstr(raw: bytes) -> bytes:
    """Encode bytes of any length."""
    return _long.pack(len(raw)) + raw


def table(fields: Table) -> bytes:
    """Encode a table of text, integers, booleans and tables."""
    return longstr(b"".join([shortstr(name) + _field(value) for name, value in fields.items()]))


def _field(value: Field) -> bytes:
    match value:
        case str():
            return b"S" + longstr(value.encode())
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            return b"l" + value.to_bytes(8, "big", signed=True)
        case Mapping():
            return b"F" + table(value)
        case _:
            raise TypeError(f"no field type for {value!r}")


def read_shortstr(data: bytes, at: int) -> tuple[str, int]:
    """Decode short text; give it and where it ends."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "surrogateescape"), end


def read_longstr(data: bytes, at: int) -> tuple[bytes, int]:
    """Decode bytes; give them and where they end."""
    end = at + 4 + _long.unpack_from(data, at)[0]
    return data[at + 4 : end], end


def read_table(data: bytes, at: int) -> tuple[dict[str, Field], int]:
    """Decode a table; give it and where it ends. Text comes as ``str``, byte arrays as ``bytes``."""
    end = at + 4 + _long.unpack_from(data, at)[0]
    at += 4
    found: dict[str, Field] = {}
    while at < end:
        name_end = at + 1 + data[at]
        name = data[at + 1 : name_end].decode("utf-8", "surrogateescape")
        if data[name_end] == TEXT:  # By far the most frequent.
            at = name_end + 5 + _long.unpack_from(data, name_end + 1)[0]
            found[name] = data[name_end + 5 : at].decode("utf-8", "surrogateescape")
        else:
            found[name], at = _read_field(data, name_end)
    return found, end


_FIXED: Final[dict[int, struct.Struct]] = {
    ord(kind): struct.Struct(">" + code)
    for kind, code in (
        ("t", "?"),
        ("b", "b"),
        ("B", "B"),
        ("s", "h"),
        ("u", "H"),
        ("I", "i"),
        ("i", "I"),
        ("l", "q"),
        ("f", "f"),
        ("d", "d"),
    )
}


def _read_field(data: bytes, at: int) -> tuple[Field, int]:
    kind = data[at]
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(data, at)[0], at + fixed.size
    match chr(kind):
        case "S":
            raw, end = read_longstr(data, at)
            return raw.decode("utf-8", "surrogateescape"), end
        case "x":
            return read_longstr(data, at)
        case "F":
            return read_table(data, at)
        case "A":
            return _read_array(data, at)
        case "T":
            return datetime.fromtimestamp(_longlong.unpack_from(data, at)[0], UTC), at + 8
        case "V":
            return None, at
        case "D":
            return _long.unpack_from(data, at + 1)[0] / 10 ** data[at], at + 5
        case unknown:
            raise ProtocolError(f"a field has the unknown type {unknown!r}")


def _read_array(data: bytes, at: int) -> tuple[list[Field], int]:
    end = at + 4 + _long.unpack_from(data, at)[0]
    at += 4
    found: list[Field] = []
    while at < end:
        value, at = _read_field(data, at)
        found.append(value)
    return found, end


# Methods: what stands in a method frame; ``method`` puts it into one.


def method(channel: int, payload: bytes) -> bytes:
    """Put a method into a frame."""
    return frame_head.pack(METHOD, channel, len(payload)) + payload + END


def _head(class_id: int, method_id: int) -> bytes:
    return struct.pack(">HH", class_id, method_id)


def start_ok(properties: Table, mechanism: str, response: bytes) -> bytes:
    """Answer ``connection.start``."""
    return _head(10, 11) + table(properties) + shortstr(mechanism) + longstr(response) + shortstr("en_US")


def tune_ok(channel_max: int, frame_max: int, heartbeat: int) -> bytes:
    """Answer ``connection.tune``."""
    return _head(10, 31) + struct.pack(">HIH", channel_max, frame_max, heartbeat)


def connection_open(vhost: str) -> bytes:
    """Enter a virtual host."""
    return _head(10, 40) + shortstr(vhost) + b"\0\0"


def connection_close() -> bytes:
    """End the connection in good order."""
    return _head(10, 50) + struct.pack(">H", 200) + shortstr("") + b"\0\0\0\0"


CONNECTION_CLOSE_OK_METHOD: Final = _head(10, 51)
CHANNEL_OPEN: Final = _head(20, 10) + b"\0"
CHANNEL_CLOSE_METHOD: Final = _head(20, 40) + struct.pack(">H", 200) + b"\0" + b"\0\0\0\0"
CHANNEL_CLOSE_OK_METHOD: Final = _head(20, 41)
CONFIRM_SELECT: Final = _head(85, 10) + b"\0"


def exchange_declare(
    name: str, kind: str = "direct", *, passive: bool = False, arguments: Table | None = None
) -> bytes:
    """Make a durable exchange, or see that it is there."""
    flags = passive << 0 | 1 << 1
    return _head(40, 10) + b"\0\0" + shortstr(name) + shortstr(kind) + bytes((flags,)) + table(arguments or {})


def exchange_bind(destination: str, source: str, key: str) -> bytes:
    """Route a key of an exchange to another exchange."""
    return _head(40, 30) + b"\0\0" + shortstr(destination) + shortstr(source) + shortstr(key) + b"\0" + table({})


def queue_declare(
    name: str,
    arguments: Table | None = None,
    *,
    passive: bool = False,
    durable: bool = True,
    exclusive: bool = False,
    auto_delete: bool = False,
) -> bytes:
    """Make a queue, or see that it is there; the answer counts its messages and consumers."""
    flags = passive << 0 | durable << 1 | exclusive << 2 | auto_delete << 3
    return _head(50, 10) + b"\0\0" + shortstr(name) + bytes((flags,)) + table(arguments or {})


def queue_bind(queue: str, exchange: str, key: str) -> bytes:
    """Route a key of an exchange to a queue."""
    return _head(50, 20) + b"\0\0" + shortstr(queue) + shortstr(exchange) + shortstr(key) + b"\0" + table({})


def queue_unbind(queue: str, exchange: str, key: str) -> bytes:
    """Route it there no more."""
    return _head(50, 50) + b"\0\0" + shortstr(queue) + shortstr(exchange) + shortstr(key) + table({})


def queue_delete(queue: str) -> bytes:
    """Remove a queue with all that is in it."""
    return _head(50, 40) + b"\0\0" + shortstr(queue) + b"\0"


def basic_qos(prefetch: int) -> bytes:
    """Limit what is unsettled for each consumer that comes after this on the channel."""
    return _head(60, 10) + struct.pack(">IHB", 0, prefetch, 0)


def basic_consume(queue: str, tag: str, *, no_ack: bool = False, exclusive: bool = False) -> bytes:
    """Take messages of a queue."""
    flags = no_ack << 1 | exclusive << 2
    return _head(60, 20) + b"\0\0" + shortstr(queue) + shortstr(tag) + bytes((flags,)) + table({})


def basic_cancel(tag: str) -> bytes:
    """Take no more."""
    return _head(60, 30) + shortstr(tag) + b"\0"


def ack_frame(channel: int, delivery_tag: int) -> bytes:
    """Say that a delivery is done with; a whole frame."""
    return _method_head.pack(METHOD, channel, 13, BASIC_ACK) + delivery_tag.to_bytes(8, "big") + b"\0\xce"


def nack_frame(channel: int, delivery_tag: int) -> bytes:
    """Hand a delivery back; a whole frame."""
    return _method_head.pack(METHOD, channel, 13, BASIC_NACK) + delivery_tag.to_bytes(8, "big") + b"\x02\xce"


def reject_frame(channel: int, delivery_tag: int) -> bytes:
    """Hand a delivery back as one that failed; a whole frame."""
    return _method_head.pack(METHOD, channel, 13, 0x003C005A) + delivery_tag.to_bytes(8, "big") + b"\x01\xce"


def read_close(data: bytes, at: int) -> tuple[int, str]:
    """Read why a connection or channel is closed: the code and the text."""
    return _short.unpack_from(data, at)[0], read_shortstr(data, at + 2)[0]


def read_queue_declare_ok(payload: bytes) -> tuple[str, int, int]:
    """Read a queue's name, and how many messages and consumers it has."""
    name, at = read_shortstr(payload, 4)
    messages, consumers = struct.unpack_from(">II", payload, at)
    return name, messages, consumers


def read_confirm(data: bytes, at: int) -> tuple[int, bool]:
    """Read an ack's or nack's delivery tag, and whether it is for all before it too."""
    return _longlong.unpack_from(data, at)[0], bool(data[at + 8] & 1)


# Content


@dataclass(slots=True)
class Properties:
    """What we use of a message's properties; None is absent."""

    headers: dict[str, Field]
    content_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    message_id: str | None = None


def properties(
    headers: bytes,
    *,
    persistent: bool = False,
    content_type: str | None = None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
    message_id: str | None = None,
) -> bytes:
    """Encode properties: their flags and values.

    Args:
        headers: The fields of the table, encoded one after another (`text_fields`).
        persistent: Whether it is kept on disk; queues of some types keep it anyway.
        content_type: The body's media type.
        correlation_id: Which call it belongs to.
        reply_to: The queue that answers go to.
        message_id: The producer's identity for it.
    """
    flags = 1 << 13
    parts = [b"", longstr(headers)]
    if content_type is not None:
        flags |= 1 << 15
        parts.insert(1, shortstr(content_type))
    if persistent:
        flags |= 1 << 12
        parts.append(b"\x02")
    if correlation_id is not None:
        flags |= 1 << 10
        parts.append(shortstr(correlation_id))
    if reply_to is not None:
        flags |= 1 << 9
        parts.append(shortstr(reply_to))
    if message_id is not None:
        flags |= 1 << 7
        parts.append(shortstr(message_id))
    parts[0] = _short.pack(flags)
    return b"".join(parts)


@lru_cache(maxsize=4096)
def field_name(name: str) -> bytes:
    """Encode a field's name and the type of text."""
    return shortstr(name) + b"S"


def text_fields(headers: Mapping[str, str]) -> bytes:
    """Encode fields of text, without the length of the table."""
    pack = _long.pack
    parts: list[bytes] = []
    for name, value in headers.items():
        raw = value.encode()
        parts += (field_name(name), pack(len(raw)), raw)
    return b"".join(parts)


def read_content_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Read a content header: the body's size, the flags, and where the values begin."""
    _, _, size, flags = _content_head.unpack_from(data, at)
    return size, flags, at + 14


def read_properties(data: bytes, at: int, flags: int) -> Properties:
    """Decode properties, ignoring those that we do not use."""
    found = Properties({})
    if flags & 1 << 15:
        found.content_type, at = read_shortstr(data, at)
    if flags & 1 << 14:
        at += 1 + data[at]
    if flags & 1 << 13:
        found.headers, at = read_table(data, at)
    at += (flags >> 12 & 1) + (flags >> 11 & 1)
    if flags & 1 << 10:
        found.correlation_id, at = read_shortstr(data, at)
    if flags & 1 << 9:
        found.reply_to, at = read_shortstr(data, at)
    if flags & 1 << 8:
        at += 1 + data[at]
    if flags & 1 << 7:
        found.message_id, at = read_shortstr(data, at)
    return found


@lru_cache(maxsize=4096)
def publish_method(channel: int, exchange: str, key: str, *, mandatory: bool) -> bytes:
    """Encode ``basic.publish``; a whole frame."""
    payload = _head(60, 40) + b"\0\0" + shortstr(exchange) + shortstr(key) + (b"\x01" if mandatory else b"\0")
    return method(channel, payload)


def content(channel: int, encoded: bytes, body: bytes, frame_max: int) -> Iterator[bytes]:
    """Give the frames that follow ``basic.publish``.

    Args:
        channel: Its number.
        encoded: From `properties`.
        body: Cut into as many frames as it needs.
        frame_max: The largest frame, its head and end included.
    """
    size = len(body)
    yield frame_head.pack(HEADER, channel, 12 + len(encoded)) + b"\0\x3c\0\0" + _longlong.pack(size) + encoded + END
    room = frame_max - FRAME_OVERHEAD
    if size <= room:
        if size:
            yield frame_head.pack(BODY, channel, size)
            yield body
            yield END
        return
    for start in range(0, size, room):
        part = body[start : start + room]
        yield frame_head.pack(BODY, channel, len(part))
        yield part
        yield END
