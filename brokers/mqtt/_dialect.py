"""The two versions of the protocol. The library knows MQTT 5; 3.1.1 is the same without properties and reasons.

A unit is one message of the protocol; what is published travels in a unit of its own kind.
"""

from __future__ import annotations

from typing import Protocol, cast

import mqtt5
from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubAckReasonCode,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    UnsubAckPacket,
    UnsubscribePacket,
)

__all__ = ["MQTT5", "MQTT311", "Dialect", "Unit", "speaks_older"]

Unit = (
    ConnAckPacket
    | ConnectPacket
    | DisconnectPacket
    | PingReqPacket
    | PingRespPacket
    | PubAckPacket
    | PublishPacket
    | SubAckPacket
    | SubscribePacket
    | UnsubAckPacket
    | UnsubscribePacket
)

PUBLISH, PUBACK = 0x30, 0x40
LEVEL_311 = 4
QOS = (QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
CONNACK_CODES = (
    ConnAckReasonCode.SUCCESS,
    ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
    ConnAckReasonCode.CLIENT_ID_NOT_VALID,
    ConnAckReasonCode.SERVER_UNAVAILABLE,
    ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD,
    ConnAckReasonCode.NOT_AUTHORIZED,
)
SUBACK_CODES = {
    0: SubAckReasonCode.GRANTED_QOS_AT_MOST_ONCE,
    1: SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE,
    2: SubAckReasonCode.GRANTED_QOS_EXACTLY_ONCE,
}


class Dialect(Protocol):
    """How units are written and read."""

    name: str
    has_properties: bool

    def write(self, unit: Unit) -> bytes:
        """Write a unit.

        Raises:
            ValueError: The protocol has no such unit.
        """

    def read(self, view: memoryview) -> tuple[Unit, int]:
        """Read the first unit, and tell its size.

        Raises:
            IndexError: Not all of it is there yet.
            ValueError: It is none.
        """


class MQTT5:
    """MQTT 5."""

    name = "5"
    has_properties = True

    def write(self, unit: Unit) -> bytes:
        """Write a unit."""
        return unit.write()

    def read(self, view: memoryview) -> tuple[Unit, int]:
        """Read a unit."""
        try:
            return cast("tuple[Unit, int]", mqtt5.read(view))
        except ValueError:
            if view[0] != PUBACK:
                raise
            # A reason that MQTT 5 does not know there: Mosquitto sends one for a message over its limit.
            begin, size = _size(view)
            packet_id = _read_number(view[begin:])
            return PubAckPacket(packet_id, reason_code=PubAckReasonCode.UNSPECIFIED_ERROR), begin + size


def speaks_older(view: memoryview) -> bool:
    """Tell whether this is a server's answer to MQTT 5 that knows 3.1.1 only (its CONNACK, code 1)."""
    return bytes(view[:2]) == b"\x20\x02" and len(view) > 3 and view[3] == 1


class MQTT311:
    """MQTT 3.1.1; its units are read into those of MQTT 5."""

    name = "3.1.1"
    has_properties = False

    def write(self, unit: Unit) -> bytes:
        """Write a unit."""
        match unit:
            case ConnectPacket():
                return _framed(0x10, _connect(unit))
            case PublishPacket():
                flags = unit.duplicate << 3 | int(unit.qos) << 1 | unit.retain
                identity = b"" if unit.packet_id is None else _number(unit.packet_id)
                return _framed(PUBLISH | flags, _text(unit.topic) + identity + unit.payload)
            case SubscribePacket():
                topics = b"".join(_text(each.pattern) + bytes([int(each.max_qos)]) for each in unit.topic_filters)
                return _framed(0x82, _number(unit.packet_id) + topics)
            case UnsubscribePacket():
                return _framed(0xA2, _number(unit.packet_id) + b"".join(map(_text, unit.patterns)))
            case DisconnectPacket():
                return b"\xe0\x00"
            case _:
                return unit.write()

    def read(self, view: memoryview) -> tuple[Unit, int]:
        """Read a unit."""
        first = view[0]
        begin, size = _size(view)
        end = begin + size
        if len(view) < end:
            raise IndexError
        body = view[begin:end]
        try:
            return _unit(first, body) or cast("Unit", mqtt5.read(view)[0]), end
        except IndexError:  # All of it is there, so it is too short.
            raise ValueError("a unit is too short") from None


def _unit(first: int, body: memoryview) -> Unit | None:
    match first & 0xF0:
        case 0x20:
            code = CONNACK_CODES[body[1]]
            return ConnAckPacket(
                session_present=bool(body[0] & 1), reason_code=code, shared_subscription_available=False
            )
        case 0x30:
            return _publish(first, body)
        case 0x90:
            codes = [SUBACK_CODES.get(code, SubAckReasonCode.UNSPECIFIED_ERROR) for code in body[2:]]
            return SubAckPacket(_read_number(body), codes)
        case 0xB0:
            return UnsubAckPacket(_read_number(body), [])
        case _:
            return None


def _publish(first: int, body: memoryview) -> PublishPacket:
    at = 2 + _read_number(body)
    topic = bytes(body[2:at]).decode()
    qos = QOS[first >> 1 & 3]
    packet_id = None
    if first & 0x06:
        packet_id, at = _read_number(body[at:]), at + 2
    return PublishPacket(
        topic,
        bytes(body[at:]),
        qos=qos,
        retain=bool(first & 1),
        packet_id=packet_id,
        duplicate=bool(first & 8),
    )


def _connect(unit: ConnectPacket) -> bytes:
    flags = (unit.username is not None) << 7 | (unit.password is not None) << 6 | unit.clean_start << 1
    login = (unit.username.encode() if unit.username is not None else None, unit.password)
    tail = b"".join(_number(len(each)) + each for each in login if each is not None)
    head = _text("MQTT") + bytes([LEVEL_311, flags]) + _number(unit.keep_alive)
    return head + _text(unit.client_id) + tail


def _framed(first: int, body: bytes) -> bytes:
    size, digits = len(body), bytearray()
    while True:
        size, digit = divmod(size, 128)
        digits.append(digit | (0x80 if size else 0))
        if not size:
            return bytes([first]) + bytes(digits) + body


def _size(view: memoryview) -> tuple[int, int]:
    """Read the length of what follows, and tell where that begins."""
    size = 0
    for index in range(4):
        digit = view[1 + index]
        size |= (digit & 0x7F) << 7 * index
        if not digit & 0x80:
            return 2 + index, size
    raise ValueError("the length of a unit is malformed")


def _text(text: str) -> bytes:
    data = text.encode()
    return _number(len(data)) + data


def _number(value: int) -> bytes:
    return value.to_bytes(2)


def _read_number(view: memoryview) -> int:
    return view[0] << 8 | view[1]
