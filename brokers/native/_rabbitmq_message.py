"""Messages as everybody on RabbitMQ has them: a body, properties by their names, headers.

Source: Dapr 1.18 as it was seen on RabbitMQ; CloudEvents AMQP binding 3.1; www.rabbitmq.com/docs/sender-selected, /dlx.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping

from aiormq import spec
from aiormq.abc import DeliveredMessage

from brokers.native._rabbitmq_settings import RabbitMQNativeSettings
from brokers.rabbitmq._message import MAX_NAME, MAX_SHORT, PREFIX, RESERVED
from mesh.broker import NOTHING, ROUTING, Message
from mesh.errors import BadArgumentError, EventError, MessageTooLargeError
from mesh.values import parse_duration, parse_whole

__all__ = ["PREFIX", "PUBLISH_METADATA", "decode", "encode", "times_delivered"]

PUBLISH_METADATA = (
    *("contentType", "correlationID", "messageID", "priority", "routingKey", "ttl", "ttlInSeconds", "type"),
)
CONTENT_TYPE = "content-type"
NO_ID = "="  # The client library gives an id to what has none.
TEXT = "text/plain"  # Whatever it is: programs there tell events of Dapr's by it.
FIELD_BYTES = 8  # What a header takes beside its name and value.
ROOM_BYTES = 4 * 1024  # For the other properties.
TOLD = {
    "message_id": "messageid",
    "correlation_id": "correlationid",
    "content_type": "contenttype",
    "message_type": "type",
}


def encode(message: Message, settings: RabbitMQNativeSettings, frame_max: int) -> tuple[str, spec.Basic.Properties]:
    """Give the routing key and the properties.

    Args:
        message: What to publish.
        settings: The component's.
        frame_max: The largest frame in bytes, which all headers have to fit into.

    Raises:
        BadArgumentError: Its metadata cannot be.
        EventError: A header has too long a name.
        MessageTooLargeError: Its headers are too large.
    """
    asked = {name.lower(): value for name, value in message.metadata.items() if value} if message.metadata else {}
    names = [name for name in message.headers if name != CONTENT_TYPE and name not in RESERVED]
    headers = {name: message.headers[name] for name in names}
    size = sum([len(name) + len(value.encode()) + FIELD_BYTES for name, value in headers.items()])
    if size > frame_max - ROOM_BYTES:
        raise MessageTooLargeError(size, frame_max - ROOM_BYTES)
    if wrong := next((name for name in names if len(name) > MAX_NAME), None):
        raise EventError(f"the name {wrong[:40]!r}… is too long: a header of RabbitMQ has up to {MAX_NAME} bytes")
    identity = message.id if message.id and len(message.id.encode()) <= MAX_SHORT else NO_ID + secrets.token_hex(8)
    made = spec.Basic.Properties(
        content_type=_short(asked, "contentType")
        or message.headers.get(CONTENT_TYPE, None if _is_binary(headers) else TEXT),
        correlation_id=_short(asked, "correlationID"),
        delivery_mode=1 if settings.mode == 1 else 2,
        expiration=_expiration(asked, settings.ttl),
        headers=headers or None,  # type: ignore[arg-type]  # a dictionary is invariant
        message_id=_short(asked, "messageID") or identity,
        message_type=_short(asked, "type"),
        priority=_priority(asked),
    )
    return _short(asked, "routingKey") or "", made


def _is_binary(headers: Iterable[str]) -> bool:
    """Tell whether there are attributes of an event among them: then a content type says what its data are."""
    return any(name.endswith("specversion") for name in headers)


def _short(asked: Mapping[str, str], name: str) -> str | None:
    value = asked.get(name.lower())
    if value is not None and len(value.encode()) > MAX_SHORT:
        raise BadArgumentError(f"the metadata {name} is too long: RabbitMQ takes up to {MAX_SHORT} bytes")
    return value


def _expiration(asked: Mapping[str, str], default: float | None) -> str | None:
    text = asked.get("ttlinseconds") or asked.get("ttl")
    try:
        seconds = default if text is None else parse_duration(text, bare="s")
        return None if seconds is None else str(round(seconds * 1000))
    except ValueError as error:
        raise BadArgumentError(f"the metadata ttlInSeconds: {error}") from None


def _priority(asked: Mapping[str, str]) -> int | None:
    try:
        return parse_whole(asked["priority"], least=0, most=255) if "priority" in asked else None
    except ValueError as error:
        raise BadArgumentError(f"the metadata priority is {error}") from None


def decode(found: DeliveredMessage, *, tell: bool) -> Message:
    """Read a message.

    Args:
        found: It, as it came.
        tell: Whether the application is told its properties and headers.
    """
    said = found.header.properties
    headers = said.headers or {}
    texts = {name: text for name, value in headers.items() if (text := _text(value)) is not None}
    flat = {name: texts[name] for name in texts if not isinstance(headers[name], list | dict)}
    metadata: Mapping[str, str] = NOTHING
    if tell:
        properties = {name: getattr(said, attribute) for attribute, name in TOLD.items()}
        all_told = {**{name: value for name, value in properties.items() if value}, **texts}
        metadata = {f"metadata.{name}": value for name, value in all_told.items()}
    if found.routing_key:
        metadata = {**metadata, ROUTING: found.routing_key}
    if said.content_type and (said.content_type != TEXT or _is_binary(flat)):
        flat.setdefault(CONTENT_TYPE, said.content_type)
    identity = None if (said.message_id or NO_ID).startswith(NO_ID) else said.message_id
    return Message(flat, found.body, None, identity, metadata)


def _text(value: object) -> str | None:
    match value:
        case None:
            return None
        case str():
            return value
        case bytes() | bytearray():
            return value.decode("utf-8", "replace")
        case bool():
            return "true" if value else "false"
        case list() | dict():
            return json.dumps(value, default=str)
        case _:
            return str(value)


def times_delivered(found: DeliveredMessage) -> int:
    """Tell how often a message was delivered at least, this time included."""
    count = (found.header.properties.headers or {}).get("x-delivery-count")  # Quorum queues alone have it.
    return max(2 if found.redelivered else 1, count + 1 if isinstance(count, int) else 1)


def identity_of(found: DeliveredMessage) -> int:
    """Tell a message from others, well enough to count attempts."""
    return hash((found.header.properties.message_id, found.routing_key, found.body))
