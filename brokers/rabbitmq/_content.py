"""What a channel is given to publish, and what it hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aiormq import spec
from aiormq.abc import DeliveredMessage

if TYPE_CHECKING:
    from brokers.rabbitmq._channel import Channel

__all__ = ["Delivered", "Publish"]

FRAME_BYTES = 256  # What a publish takes beside its body and its headers, roughly.


class Delivered:
    """A message as the server handed it out."""

    __slots__ = ("body", "channel", "key", "properties", "tag")

    def __init__(self, channel: Channel, message: DeliveredMessage) -> None:
        self.channel = channel
        self.tag = cast("int", message.delivery_tag)
        self.key = message.routing_key or ""
        self.properties = message.header.properties
        self.body = message.body


class Publish:
    """A message to publish.

    Attributes:
        size: What it takes of the room for what is unconfirmed, in bytes.
    """

    __slots__ = ("body", "exchange", "key", "mandatory", "properties", "size")

    def __init__(
        self,
        exchange: str,
        key: str,
        properties: spec.Basic.Properties,
        body: bytes,
        headers_size: int = 0,
        *,
        mandatory: bool = True,
    ) -> None:
        self.exchange = exchange
        self.key = key
        self.properties = properties
        self.body = body
        self.mandatory = mandatory
        self.size = len(body) + headers_size + FRAME_BYTES
