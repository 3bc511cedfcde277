"""Messages as MQTT 5 has them, by the CloudEvents binding: attributes are user properties under their own names.

A header that the binding does not know is a user property too. One that would read as an attribute has ``:`` before
its name; a value that MQTT does not take is percent-encoded, and has ``=`` before its name. No header begins so.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote

from mqtt5 import PublishPacket

from brokers.mqtt._topics import is_clean
from mesh.broker import Message
from mesh.errors import EventError, PublishRejectedError
from mesh.event import encode_header_value, from_headers, to_structured

__all__ = ["PREFIX", "message_of", "properties_of", "structured"]

PREFIX = "ce-"
VERSION = "specversion"
EVENT = PREFIX + VERSION
DATA_TYPE = PREFIX + "datacontenttype"
CONTENT_TYPE = "content-type"
KEY, IDENTITY = "/key", "/id"


@lru_cache(maxsize=4096)
def _is_attribute(name: str) -> bool:
    return name.isascii() and name.isalnum() and name == name.lower()


def properties_of(message: Message) -> tuple[str | None, list[tuple[str, str]]]:
    """Give the content type and the user properties of a message."""
    headers = message.headers
    is_event = EVENT in headers
    content_type = None
    properties: list[tuple[str, str]] = []
    for name, value in headers.items():
        if is_event and name.startswith(PREFIX) and _is_attribute(name[len(PREFIX) :]):
            text = unquote(value) if "%" in value else value
            if not is_clean(text) or encode_header_value(text) != value:
                properties.append(("=" + name, encode_header_value(value)))
            elif name == DATA_TYPE:
                content_type = text
            else:
                properties.append((name[len(PREFIX) :], text))
        elif not is_clean(value):
            properties.append(("=" + name, encode_header_value(value)))
        elif name == CONTENT_TYPE and not is_event:
            content_type = value
        elif name == VERSION or (is_event and _is_attribute(name)):
            properties.append((":" + name, value))
        else:
            properties.append((name, value))
    if message.key is not None:
        properties.append((KEY, encode_header_value(message.key)))
    if message.id is not None:
        properties.append((IDENTITY, encode_header_value(message.id)))
    return content_type, properties


def structured(message: Message) -> bytes:
    """Give what MQTT 3.1.1 can carry of a message, which has no headers there: an event as one JSON object.

    Raises:
        PublishRejectedError: It is no CloudEvent, though it says so.
    """
    if EVENT not in message.headers:
        return message.body
    try:
        return to_structured(from_headers(message.headers, message.body, PREFIX))
    except EventError as error:
        raise PublishRejectedError(f"it cannot be published as MQTT 3.1.1 needs it: {error}") from error


def message_of(unit: PublishPacket) -> Message:
    """Read a message back, or one from somebody else."""
    properties = unit.user_properties
    is_event = any(name == VERSION for name, _ in properties)
    headers: dict[str, str] = {}
    key = identity = None
    for name, value in properties:
        first = name[:1]
        if first == "=":
            headers[name[1:]] = unquote(value)
        elif first == ":":
            headers[name[1:]] = value
        elif first == "/":
            if name == KEY:
                key = unquote(value)
            elif name == IDENTITY:
                identity = unquote(value)
        elif is_event and _is_attribute(name):
            headers[PREFIX + name] = encode_header_value(value)
        else:
            headers[name] = value
    if unit.content_type is not None:
        name = DATA_TYPE if is_event else CONTENT_TYPE
        headers[name] = encode_header_value(unit.content_type) if is_event else unit.content_type
    return Message(headers, unit.payload, key, identity)
