"""What a FastStream handler receives: an event of the mesh, or a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
from faststream import PublishCommand, Response, StreamMessage
from pydantic_core import to_json

from brokers.faststream._cloudevents import cloudevent_of, event_of, is_cloudevent, wanted_by
from mesh.application import Headers
from mesh.blocks.envelope import PublishOptions, build_binary
from mesh.errors import EventError
from mesh.event import (
    CLOUDEVENTS_JSON,
    Event,
    from_headers,
    from_structured,
    is_json,
    is_structured,
    media_type,
    to_headers,
    to_structured,
)

__all__ = [
    "ATTRIBUTES",
    "EVENT_PREFIX",
    "Answered",
    "Delivered",
    "IncomingCall",
    "MeshMessage",
    "as_event",
    "decode",
    "decoder_of",
    "encode",
    "parse",
    "structured",
]

EVENT_PREFIX = "ce-"
ATTRIBUTES = ("id", "source", "type", "subject")
JSON = "application/json"
OCTETS = "application/octet-stream"
Parser = Callable[[object], Awaitable["StreamMessage[object]"]]


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """An invocation of this application.

    Attributes:
        verb: The HTTP method.
        path: Below the application, without a leading slash.
        query: Raw, without the question mark.
        headers: By lower-case name; of several the last.
    """

    verb: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answered:
    """What another application answered.

    Attributes:
        status: The HTTP status.
        headers: By lower-case name; of several the last.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Give the body as Python."""
        return orjson.loads(self.body)


class MeshMessage(StreamMessage[object]):
    """FastStream's message with what the mesh knows; ``committed`` says how the handler settled it.

    Attributes:
        event: The event; None for a call, and for what other programs have written that is no event.
        call: The call; None for an event.
        attempt: From 1; an upper bound on some brokers.
    """

    event: Event | None = None
    call: IncomingCall | None = None
    attempt: int = 1

    @classmethod
    def delivered(cls, raw: object, body: bytes, headers: Mapping[str, str]) -> MeshMessage:
        """Wrap what is delivered: an event, or what other programs write, which is any other JSON object, or bytes.

        Raises:
            EventError: It says that it is an event, and is none that is valid.
        """
        try:
            return cls.of_event(raw, from_structured(body), headers)
        except EventError:
            try:
                members = orjson.loads(body)
            except orjson.JSONDecodeError:
                members = None
            is_object = isinstance(members, dict)
            if is_object and "specversion" in members:
                raise
        made = cls(raw, body, headers=dict(headers), content_type=JSON if is_object else OCTETS)
        made.attempt = int(headers.get("mesh-attempt", "1"))
        return made

    @classmethod
    def of_event(cls, raw: object, event: Event, headers: Mapping[str, str]) -> MeshMessage:
        """Wrap an event."""
        made = cls(
            raw,
            event.data,
            headers=dict(headers),
            content_type=event.datacontenttype,
            correlation_id=event.id,
            message_id=event.id,
        )
        made.event = event
        made.attempt = int(headers.get("mesh-attempt", "1"))
        return made

    @classmethod
    def of_call(cls, raw: object, call: IncomingCall, body: bytes) -> MeshMessage:
        """Wrap a call."""
        made = cls(raw, body, headers=dict(call.headers), content_type=call.headers.get("content-type"))
        made.call = call
        return made

    async def nack(self, **_: object) -> None:
        """Ask for another attempt; when it comes is the policy's decision."""
        await super().nack()


class Delivered:
    """The raw message of what the mesh delivers, with the attributes that FastStream's own log context reads.

    Attributes:
        message: What a handler gets.
        subject: The topic or method.
        topic: The same.
        data: The body.
    """

    __slots__ = ("data", "headers", "message", "reply", "subject", "topic")

    def __init__(self, name: str, body: bytes) -> None:
        self.subject = self.topic = name
        self.data = body
        self.headers: dict[str, str] = {}
        self.reply = ""
        self.message: MeshMessage


async def parse(raw: object, original: Parser) -> StreamMessage[object]:
    """Give the mesh's own message, or make one of what a test sends by FastStream's broker.

    Raises:
        EventError: It is neither an event nor a call.
    """
    if isinstance(raw, Delivered):
        return raw.message
    given = await original(raw)
    headers = {name.lower(): value for name, value in given.headers.items() if isinstance(value, str)}
    body = given.body if isinstance(given.body, bytes) else encode(given.body)[0]
    if EVENT_PREFIX + "specversion" in headers:
        made = MeshMessage.of_event(raw, from_headers(headers, body, EVENT_PREFIX), headers)
    elif is_structured(given.content_type):
        made = MeshMessage.of_event(raw, from_structured(body), headers)
    else:
        headers.setdefault("content-type", given.content_type or "")
        call = IncomingCall(headers.pop("mesh-verb", "POST"), headers.pop("mesh-path", ""), "", headers)
        made = MeshMessage.of_call(raw, call, body)
    made.reply_to, made.correlation_id = given.reply_to, given.correlation_id
    return made


async def decode(message: StreamMessage[object]) -> object:
    """Give the data as Python: JSON by its media type, text as text, anything else as bytes.

    Raises:
        EventError: It is said to be JSON and is not.
    """
    body = cast("bytes", message.body)
    media = media_type(message.content_type or "")
    if is_json(media) or not media:
        try:
            return orjson.loads(body) if body else None
        except orjson.JSONDecodeError as error:
            if media:
                raise EventError(f"the body is not JSON: {error}") from None
            return body
    return body.decode("utf-8", "replace") if media.startswith("text/") else body


def decoder_of(subscriber: Callable[[], object]) -> Callable[[StreamMessage[object]], Awaitable[object]]:
    """Give a subscriber's decoder: the data, or the event where its handlers take one of the package ``cloudevents``.

    Args:
        subscriber: Gives FastStream's, which is made after its decoder.
    """

    async def decoder(message: StreamMessage[object]) -> object:
        data, wanted = await decode(message), wanted_by(subscriber())
        return data if wanted is None else cloudevent_of(getattr(message, "event", None), data, wanted)

    return decoder


def as_event(command: PublishCommand, options: PublishOptions) -> None:
    """Make what a test publishes a message that `parse` reads as an event."""
    body, media = command.body, command.headers.get("content-type")
    if is_cloudevent(body):
        body, media = encode(body)
    if is_structured(media):
        event = from_structured(body)
        command.body = event.data
        command.add_headers(to_headers(event, EVENT_PREFIX), override=True)
    else:
        command.add_headers(build_binary(options, encode(body)[1], b"null", EVENT_PREFIX)[0], override=False)


def structured(result: object) -> object:
    """Write what a handler returns, if it is an event of the package ``cloudevents``; leave it as it is otherwise."""
    response = result if isinstance(result, Response) else Response(result)
    if not is_cloudevent(response.body):
        return result
    response.body, media = encode(response.body)
    response.headers = {**response.headers, "content-type": media}
    return response


def encode(data: object) -> tuple[bytes, str]:
    """Give bytes and their media type: bytes and text as they are, all else as JSON, models included.

    An event of the package ``cloudevents`` becomes a structured one.

    Raises:
        EventError: Such an event is none that is valid.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), OCTETS
    if isinstance(data, str):
        return data.encode(), "text/plain"
    if is_cloudevent(data):
        return to_structured(event_of(data)), CLOUDEVENTS_JSON
    return to_json(data), JSON


def last_of_each(headers: Headers) -> dict[str, str]:
    """Give headers by lower-case name."""
    return {name.lower(): value for name, value in headers}
