"""What stands on a broker for an event, by the layout of its topics: the mesh's own, or everybody's."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from msgspec.structs import replace

from mesh.address import Address
from mesh.blocks import envelope
from mesh.blocks.envelope import Envelope, PublishOptions
from mesh.broker import LETTER_ATTEMPTS, LETTER_REASON, LETTER_TOPIC, NOTHING, Delivery, Features, Message
from mesh.delivery import NOT_BEFORE_HEADER
from mesh.errors import EventError, FeatureNotSupportedError
from mesh.event import as_read_again, decode_header_value, encode_header_value, is_structured
from mesh.telemetry import BAGGAGE, is_baggage

__all__ = ["DEAD_LETTER_HEADERS", "MeshWire", "Sign", "Wire", "letter_headers", "letter_of"]

DEAD_LETTER_HEADERS = (LETTER_REASON, LETTER_ATTEMPTS, LETTER_TOPIC)
MAX_REASON = 500
Sign = Callable[[Address, Message], Message]


def letter_headers(message: Message) -> dict[str, str]:
    """Give what a dead letter says of how it became one; nothing for any other message."""
    headers = message.headers
    return {name: headers[name] for name in DEAD_LETTER_HEADERS if name in headers}


def letter_of(message: Message, reason: str, attempts: int, topic: str, group: str) -> Message:
    """Make the dead letter of a message: as it is, with the reason in headers."""
    values = (encode_header_value(reason[:MAX_REASON]), str(attempts), encode_header_value(topic))
    headers = {**message.headers, **dict(zip(DEAD_LETTER_HEADERS, values, strict=True))}
    identity = f"dead-{message.id}-{group}" if message.id else secrets.token_hex(12)
    return replace(message, headers=headers, id=identity)


class Wire(Protocol):
    """Makes messages of events, and reads them.

    Attributes:
        publish_metadata: What a publisher's metadata may say to the broker, ``*`` for anything.
    """

    publish_metadata: tuple[str, ...]

    def compose(
        self,
        options: PublishOptions,
        content_type: str | None,
        body: bytes,
        metadata: Mapping[str, str],
        *,
        raw: bool,
        key: str | None,
    ) -> Message:
        """Make the message of an event; without a proof.

        Raises:
            EventError: The application's own event is not one.
            FeatureNotSupportedError: The layout has no place for what was asked.
        """

    def sign(self, sign: Sign, address: Address, message: Message) -> Message:
        """Sign a message."""

    def signed(self, delivery: Delivery) -> Delivery:
        """Give a delivery as it was signed."""

    def read(self, message: Message, topic: str, *, raw: bool, batch: bool) -> Envelope:
        """Make what an application receives.

        Args:
            message: As it came.
            topic: As applications name it.
            raw: Whether the subscription takes payloads as they are.
            batch: Whether it becomes an entry of a batch.

        Raises:
            EventError: It is no CloudEvent, and the subscription asks for these.
        """

    def told(self, message: Message) -> Mapping[str, str]:
        """Give what an application is told beside an event, in headers or an entry's metadata."""

    def letter(self, message: Message, reason: str, attempts: int, topic: str, group: str) -> Message:
        """Make a message's dead letter."""


class MeshWire:
    """The mesh's own: attributes in headers, and data as the application gave them."""

    publish_metadata: tuple[str, ...] = ()

    def __init__(self, features: Features, pubsub: str) -> None:
        """Prepare for a component's broker."""
        self._features, self._pubsub = features, pubsub

    def compose(
        self,
        options: PublishOptions,
        content_type: str | None,
        body: bytes,
        metadata: Mapping[str, str],
        *,
        raw: bool,
        key: str | None,
    ) -> Message:
        """Make the message of an event."""
        features = self._features
        if options.not_before is not None and not features.delay:
            raise FeatureNotSupportedError(features.name, "delayed events")
        # The id is ours, not the event's: an application may reuse its event ids, and none may be swallowed.
        identity = secrets.token_hex(12)
        scheduled = {} if options.not_before is None else {NOT_BEFORE_HEADER: str(int(options.not_before * 1000))}
        if raw:
            return Message(scheduled, body, key, identity)
        prefix = features.event_prefix
        if is_structured(content_type):
            headers, body = envelope.build_structured(options, body, prefix)
        else:
            headers, body = envelope.build_binary(options, content_type, body, prefix)
            if key is not None:
                headers[prefix + "partitionkey"] = encode_header_value(key)
        if options.baggage:
            headers[BAGGAGE] = encode_header_value(options.baggage)
        if scheduled:
            headers |= scheduled
        return Message(headers, body, key, identity)

    def sign(self, sign: Sign, address: Address, message: Message) -> Message:
        """Sign a message."""
        features = self._features
        if features.embeds:  # What is signed is what will be read.
            body = as_read_again(message.headers, message.body, features.event_prefix)
            message = replace(message, body=body)
        return sign(address, message)

    def signed(self, delivery: Delivery) -> Delivery:
        """Give it as it is: all of it is signed."""
        return delivery

    def read(self, message: Message, topic: str, *, raw: bool, batch: bool) -> Envelope:
        """Make what an application receives."""
        prefix, pubsub = self._features.event_prefix, self._pubsub
        if not raw:
            return envelope.read(message.headers, message.body, pubsub=pubsub, topic=topic, prefix=prefix)
        body, traceparent = message.body, ""
        enveloped = prefix + "specversion" in message.headers
        if enveloped or is_structured(message.headers.get(envelope.CONTENT_TYPE)):
            with suppress(EventError):  # Of somebody else, who says that it is one; it is delivered as it is.
                whole = envelope.read(message.headers, body, pubsub=pubsub, topic=topic, prefix=prefix)
                body, traceparent = whole.body, whole.traceparent
        if not batch:
            body = envelope.wrap_raw(body, pubsub=pubsub, topic=topic, traceparent=traceparent)
        return Envelope(body, traceparent, raw=True)

    def told(self, message: Message) -> Mapping[str, str]:
        """Give the baggage that came beside an event, and what a dead letter says."""
        baggage = message.headers.get(BAGGAGE)
        letter = letter_headers(message)
        if baggage is None:
            return letter or NOTHING
        text = decode_header_value(baggage)
        return {BAGGAGE: text, **letter} if is_baggage(text) else letter

    def letter(self, message: Message, reason: str, attempts: int, topic: str, group: str) -> Message:
        """Make a message's dead letter."""
        return letter_of(message, reason, attempts, topic, group)
