"""The CloudEvents 1.0 value, and its two content modes as pure functions.

Binary mode keeps the application's bytes as they are and puts the attributes into headers; it
is what travels on a backbone. Structured mode is one JSON object; it is what an application
sends with ``application/cloudevents+json``, and what it receives.

Decoding is strict: an attribute that must be there and is not, is an ``EventError``; nothing is
invented on receipt. (The CloudEvents SDK 2.2 makes up ``id`` and ``specversion`` there, which
breaks deduplication; it serves as the second opinion in this module's tests instead. ADR 3.)

Source: CloudEvents 1.0.2 sections 3 and 4; JSON event format 1.0.2; HTTP protocol binding 1.0.2
section 3.1.3.2 (header value encoding), which the NATS binding takes over.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import cast
from urllib.parse import unquote_to_bytes

import msgspec
import orjson

from mesh.errors import EventError
from mesh.values import is_instant

__all__ = [
    "CLOUDEVENTS_JSON",
    "MAX_LEVELS",
    "SPECVERSION",
    "Event",
    "as_read_again",
    "attributes_of",
    "decode_header_value",
    "encode_header_value",
    "from_headers",
    "from_structured",
    "is_json",
    "is_structured",
    "media_type",
    "members_of",
    "new_id",
    "parse_json",
    "required_headers",
    "to_headers",
    "to_structured",
]

CLOUDEVENTS_JSON = "application/cloudevents+json"
SPECVERSION = "1.0"
MAX_LEVELS = 254  # That orjson writes; it reads 1024.

_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,}\Z")
_UNSAFE_IN_HEADER = re.compile(r"[^!#$&-~]")
_has_unsafe = _UNSAFE_IN_HEADER.search
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}
# The whole of each escape, so that a backslash which is escaped itself begins none.
_HEX = rb"[0-9a-fA-F]{2}"
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]%b\\u[dD][c-fC-F]%b|(u[dD][89a-fA-F]%b)|.)" % (_HEX, _HEX, _HEX), re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)")
_INTEGERS = range(-(2**31), 2**31)
_CORE = frozenset({"id", "source", "type", "specversion", "datacontenttype", "dataschema", "subject", "time"})


class Event(msgspec.Struct, frozen=True):
    """One CloudEvent.

    Attributes:
        id: Unique for its source; not empty.
        source: URI reference of the producer; not empty.
        type: What happened; not empty.
        data: The application's bytes, as given.
        datacontenttype: Media type of ``data``; None when unknown.
        dataschema: URI of the schema of ``data``.
        subject: What the event is about, within its source.
        time: RFC 3339 text, as given.
        extensions: Further attributes; names are lower-case letters and digits.
    """

    id: str
    source: str
    type: str
    data: bytes = b""
    datacontenttype: str | None = None
    dataschema: str | None = None
    subject: str | None = None
    time: str | None = None
    extensions: Mapping[str, str | int | bool] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "source", "type"):
            if not getattr(self, name):
                raise EventError(f"attribute '{name}' must not be empty")
        for name in self.extensions:
            if not _ATTRIBUTE_NAME.match(name):
                raise EventError(f"extension '{name}' must be lower-case letters and digits")
            if name in _CORE or name in ("data", "data_base64"):
                raise EventError(f"'{name}' is not an extension")
        if self.time is not None and not is_instant(self.time):
            raise EventError(f"attribute 'time' is not RFC 3339: {self.time!r}")


def new_id() -> str:
    """Make an id: a UUID of version 4, in less time than the standard library needs."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:]}"


@lru_cache(maxsize=512)
def media_type(content_type: str) -> str:
    """Give a content type in lower case, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json(media: str) -> bool:
    """Tell whether data of a media type is JSON."""
    return media == "application/json" or media.endswith("+json")


def is_structured(content_type: str | None) -> bool:
    """Tell whether a content type announces a structured-mode event, which is JSON here."""
    return content_type is not None and media_type(content_type) == CLOUDEVENTS_JSON


def encode_header_value(value: str) -> str:
    """Percent-encode what a header may not carry: space, ``"``, ``%`` and all but printable ASCII."""
    if not _has_unsafe(value):
        return value
    return _UNSAFE_IN_HEADER.sub(lambda m: "".join(f"%{byte:02X}" for byte in m[0].encode()), value)


def decode_header_value(value: str, errors: str = "replace") -> str:
    """Read what ``encode_header_value`` wrote.

    Raises:
        EventError: It is not UTF-8, and ``errors`` is ``strict``.
    """
    if value[:1] == '"' and value[-1:] == '"' and len(value) > 1:  # As older versions of the specification wrote it.
        value = _QUOTED_PAIR.sub(r"\1", value[1:-1])
    if "%" not in value:
        return value
    try:
        return unquote_to_bytes(value).decode(errors=errors)
    except UnicodeDecodeError:
        raise EventError(f"header value is not percent-encoded UTF-8: {value!r}") from None


def required_headers(id: str, source: str, type: str, prefix: str = "ce-") -> dict[str, str]:
    """Encode the attributes that every event has, for binary mode."""
    if _has_unsafe(id + source + type):
        id, source, type = encode_header_value(id), encode_header_value(source), encode_header_value(type)
    return {prefix + "specversion": SPECVERSION, prefix + "id": id, prefix + "source": source, prefix + "type": type}


def to_headers(event: Event, prefix: str = "ce-") -> dict[str, str]:
    """Encode the attributes for binary mode; the body is ``event.data``.

    Args:
        event: The event.
        prefix: The broker's header prefix (``ce-`` for HTTP and NATS, ``ce_`` for Kafka).
    """
    headers = required_headers(event.id, event.source, event.type, prefix)
    for name in ("datacontenttype", "dataschema", "subject", "time"):
        value = getattr(event, name)
        if value is not None:
            headers[prefix + name] = encode_header_value(value)
    for name, extension in event.extensions.items():
        headers[prefix + name] = encode_header_value(_attribute_text(extension))
    return headers


def _attribute_text(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def attributes_of(headers: Mapping[str, str], prefix: str, errors: str = "strict") -> dict[str, str]:
    """Decode the attributes among the headers of a binary-mode message, and check none.

    Args:
        headers: By lower-case name.
        prefix: As for `to_headers`.
        errors: What becomes of bytes that are no UTF-8: ``strict`` or ``replace``.

    Raises:
        EventError: A value is not percent-encoded UTF-8.
    """
    size = len(prefix)
    return {
        name[size:]: decode_header_value(value, errors) if "%" in value or '"' in value else value
        for name, value in headers.items()
        if name.startswith(prefix)
    }


def from_headers(headers: Mapping[str, str], body: bytes, prefix: str = "ce-") -> Event:
    """Decode a binary-mode message.

    Raises:
        EventError: A required attribute is missing, or one is malformed.
    """
    attributes = attributes_of({name.lower(): value for name, value in headers.items()}, prefix)
    _check_version(attributes.pop("specversion", None))
    core = {name: attributes.pop(name) for name in list(attributes) if name in _CORE}
    return _build(core, attributes, body)


def _check_version(version: object) -> None:
    if version != SPECVERSION:
        raise EventError(f"attribute 'specversion' must be '{SPECVERSION}', not {version!r}")


def _build(core: Mapping[str, str], extensions: Mapping[str, str | int | bool], data: bytes) -> Event:
    for name in ("id", "source", "type"):
        if name not in core:
            raise EventError(f"attribute '{name}' is missing")
    return Event(data=data, extensions=extensions, **core)


def to_structured(event: Event) -> bytes:
    """Encode as one JSON object, its members in alphabetical order.

    JSON data is spliced in byte for byte; text goes in as a string; anything else, and what is
    said to be JSON but is not, as base64.
    """
    members: dict[str, object] = {
        "id": event.id,
        "source": event.source,
        "specversion": SPECVERSION,
        "type": event.type,
        **{
            name: value
            for name in ("datacontenttype", "dataschema", "subject", "time")
            if (value := getattr(event, name)) is not None
        },
        **event.extensions,
    }
    if event.data:
        try:
            members["data"] = _readable(event)
        except ValueError:
            members["data_base64"] = base64.b64encode(event.data).decode()
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)


def _readable(event: Event) -> object:
    """Give the data as it stands in JSON; ValueError when only base64 holds it."""
    media = media_type(event.datacontenttype or "application/json")
    if is_json(media):
        orjson.loads(event.data)  # Spliced in unread, it could close the object and add attributes of its own.
        return orjson.Fragment(event.data)
    if media.startswith("text/"):
        return event.data.decode()
    raise ValueError(media)


def as_read_again(headers: Mapping[str, str], body: bytes, prefix: str) -> bytes:
    """Give the data of a binary-mode event as it is once it was part of a structured one."""
    if prefix + "specversion" not in headers:
        return body
    try:
        event = from_headers({name: headers[name] for name in headers if name.startswith(prefix)}, body, prefix)
        return from_structured(to_structured(event)).data
    except EventError:  # Whoever publishes it says so.
        return body


def parse_json(body: bytes) -> object:
    """Parse JSON; half of a surrogate pair, as programs write that cut a text in the middle, is read as U+FFFD.

    Raises:
        ValueError: It is none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if b"\\u" not in body:
            raise
        return orjson.loads(_ESCAPE.sub(lambda found: rb"\ufffd" if found[1] else found[0], body))


def members_of(body: bytes, refusal: str = "not a CloudEvent") -> dict[str, object]:
    """Parse a structured-mode event, and check none of its members.

    Args:
        body: The message's body.
        refusal: How the error's message begins.

    Raises:
        EventError: It is no JSON object.
    """
    try:
        members = parse_json(body)
    except ValueError as error:
        text = "not UTF-8" if str(error).startswith("str is not valid UTF-8") else error
        raise EventError(f"{refusal}: {text}") from None
    if not isinstance(members, dict):
        raise EventError(f"{refusal}: not a JSON object")
    return cast("dict[str, object]", members)


def from_structured(body: bytes) -> Event:
    """Decode a structured-mode event.

    Raises:
        EventError: Not a JSON object, or not a valid event.
    """
    members = members_of(body)
    _check_version(members.get("specversion"))
    if "data" in members and "data_base64" in members:
        raise EventError("'data' and 'data_base64' exclude each other")
    core: dict[str, str] = {}
    extensions: dict[str, str | int | bool] = {}
    for name, value in members.items():
        if name in ("data", "data_base64", "specversion") or value is None:
            continue
        if name in _CORE:
            if not isinstance(value, str):
                raise EventError(f"attribute '{name}' must be a string")
            core[name] = value
        elif isinstance(value, str | bool) or (isinstance(value, int) and value in _INTEGERS):
            extensions[name] = value
        else:
            raise EventError(f"extension '{name}' must be a string, a boolean or an integer of 32 bits")
    return _build(core, extensions, _structured_data(members, core))


def _structured_data(members: Mapping[str, object], core: Mapping[str, str]) -> bytes:
    if (encoded := members.get("data_base64")) is not None:
        if not isinstance(encoded, str):
            raise EventError("'data_base64' must be a string")
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise EventError("'data_base64' is not base64") from None
    if "data" not in members:
        return b""
    data = members["data"]
    if isinstance(data, str) and not is_json(media_type(core.get("datacontenttype", "application/json"))):
        return data.encode()
    return orjson.dumps(data)
