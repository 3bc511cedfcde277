"""Messages as RabbitMQ carries them: headers as fields of text, what is ours beside them.

Our own fields begin with ``=``, which no header name can hold, as does a header whose name means
something to RabbitMQ. What others publish is read as the CloudEvents AMQP binding has it.

Source: CloudEvents AMQP binding 3.1; www.rabbitmq.com/docs/sender-selected, /dlx, /quorum-queues.
"""

from __future__ import annotations

import itertools
from datetime import datetime
from decimal import Decimal
from typing import cast

from aiormq import spec

from mesh.broker import Message
from mesh.errors import MessageTooLargeError

__all__ = ["ATTEMPT", "PREFIX", "TOPIC", "decode", "encode", "headers_size"]

PREFIX = "cloudEvents_"
OTHER_PREFIX = "cloudEvents:"
CONTENT_TYPE = PREFIX + "datacontenttype"
CONTENT_TYPES = (CONTENT_TYPE, "content-type", "Content-Type")
OURS = "="
TOPIC, IDENTITY, ATTEMPT = "=topic", "=id", "=attempt"
DELIVERY_COUNT = "x-delivery-count"
MAX_SHORT = 255
MAX_NAME = 128

# Fields that RabbitMQ reads, adds or removes.
RESERVED = frozenset(
    {
        "BCC",
        "CC",
        DELIVERY_COUNT,
        "x-acquired-count",
        "x-death",
        "x-first-death-exchange",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
        "x-stream-offset",
    }
)


_numbers = itertools.count(1)


def encode(
    message: Message,
    *,
    stored: bool = False,
    extra: dict[str, str] | None = None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
) -> spec.Basic.Properties:
    """Encode a message's properties.

    Args:
        message: Headers and identity; the body goes as it is.
        stored: Whether it goes to a queue that keeps it.
        extra: Fields of ours.
        correlation_id: The token of an inbox.
        reply_to: Where a frame's answer goes.
    """
    headers = message.headers
    identity = message.id
    if not RESERVED.isdisjoint(headers):
        headers = {OURS + name if name in RESERVED else name: value for name, value in headers.items()}
    if identity is not None and not (stored and identity[:1] not in OURS and len(identity.encode()) <= MAX_SHORT):
        extra = {**(extra or {}), IDENTITY: identity}
        identity = None
    content_type = next((headers[name] for name in CONTENT_TYPES if name in headers), None)
    if content_type is not None and len(content_type) > MAX_SHORT:
        content_type = None
    longest = max(map(len, headers), default=0)
    if longest > MAX_NAME:  # aiormq would cut it.
        raise MessageTooLargeError(longest, MAX_NAME)
    return spec.Basic.Properties(
        headers={**headers, **extra} if extra else dict(headers),
        delivery_mode=2 if stored else None,
        content_type=content_type,
        correlation_id=correlation_id,
        reply_to=reply_to,
        message_id=identity or f"{OURS}{next(_numbers):x}",
    )


def headers_size(properties: spec.Basic.Properties) -> int:
    """Give the bytes that the headers of an encoded message take."""
    size = 0
    for name, value in cast("dict[str, str]", properties.headers).items():
        size += len(name) + 6 + (len(value) if value.isascii() else len(value.encode()))
    return size


def decode(properties: spec.Basic.Properties, body: bytes) -> tuple[Message, int]:
    """Decode a message; give it, and how often it was handed out before."""
    found = properties.headers or {}
    headers: dict[str, str] = {}
    identity, attempts = properties.message_id or None, 0
    if identity is not None and identity[:1] == OURS:
        identity = None
    for name, value in found.items():
        if type(value) is str and name[:1] != OURS and name[:2] != "x-" and name[:12] != OTHER_PREFIX:
            headers[name] = value
        elif name == DELIVERY_COUNT:
            attempts += value if isinstance(value, int) else 0
        elif name == TOPIC:
            continue
        elif name == IDENTITY:
            identity = str(value)
        elif name == ATTEMPT:
            attempts += int(value) if isinstance(value, str) and value.isdecimal() else 0
        elif name not in RESERVED and (text := _text(value)) is not None:
            headers[_plain(name)] = text
    given = properties.content_type
    if given is not None and headers.keys().isdisjoint(CONTENT_TYPES):
        headers[CONTENT_TYPE if PREFIX + "specversion" in headers else "content-type"] = given
    return Message(headers, body, id=identity), attempts


def _plain(name: str) -> str:
    if name[:1] == OURS:
        return name[1:]
    return PREFIX + name[len(OTHER_PREFIX) :] if name.startswith(OTHER_PREFIX) else name


def _text(value: object) -> str | None:
    """Write a field that others published in CloudEvents' canonical form; None when it has none."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float() | Decimal():
            return str(value)
        case datetime():
            return value.strftime("%Y-%m-%dT%H:%M:%SZ")
        case bytes() | bytearray():
            return value.decode("utf-8", "replace")
        case _:
            return None
