"""The pub/sub envelope: what an application publishes, what travels, what an application receives.

Built by the gateway, an event travels in binary mode: the body is the application's bytes, the
attributes are headers; the receiving gateway splices them into one JSON object without parsing
the data. An event that the application built itself (``application/cloudevents+json``) travels in
structured mode, since its attributes may have JSON types that headers would lose. A raw one
travels as it is.

Source: Dapr's HTTP API, publishing and delivery (docs/compatibility.md lists the deviations).
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache

import msgspec
import orjson

from mesh.errors import EventError
from mesh.event import (
    CLOUDEVENTS_JSON,
    MAX_LEVELS,
    SPECVERSION,
    attributes_of,
    encode_header_value,
    media_type,
    members_of,
    new_id,
    parse_json,
    required_headers,
)
from mesh.telemetry import is_traceparent, is_tracestate
from mesh.values import parse_instant

__all__ = [
    "CONTENT_TYPE",
    "OVERRIDE",
    "OVERRIDES",
    "Envelope",
    "PublishOptions",
    "as_json",
    "build_binary",
    "build_enveloped",
    "build_structured",
    "complete",
    "overrides",
    "read",
    "wrap_raw",
    "written",
]

DEFAULT_TYPE = "com.dapr.event.sent"
DEFAULT_SOURCE = "Dapr"
CONTENT_TYPE = "content-type"
OVERRIDE = "cloudevent."
OVERRIDES = frozenset({"id", "source", "type", "subject", "traceid", "traceparent", "tracestate"})
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)
_WIDE_CHARSETS = ("utf-16", "utf-32", "utf16", "utf32", "ucs-")


class Placement(Enum):
    """Where an event's data stands in the JSON envelope."""

    JSON = "json"
    TEXT = "text"
    BASE64 = "base64"


@lru_cache(maxsize=512)
def _placement(content_type: str) -> Placement:
    """Decide by media type; only exactly ``application/json`` is JSON, and only UTF-8 is text."""
    media = media_type(content_type)
    if media == "application/json":
        return Placement.JSON
    if media in ("application/octet-stream", "application/cloudevents+protobuf"):
        return Placement.BASE64
    charset = _CHARSET.search(content_type)
    wide = charset is not None and charset[1].lower().startswith(_WIDE_CHARSETS)  # Such bytes can pass for UTF-8.
    return Placement.BASE64 if wide else Placement.TEXT


class PublishOptions(msgspec.Struct, frozen=True):
    """What a publish request says besides its body.

    Attributes:
        app_id: The publisher.
        pubsub: The component's name.
        topic: The topic as the application wrote it.
        traceparent: This publish's span; empty when tracing is off.
        tracestate: Passed on.
        overrides: ``cloudevent.*`` attributes, lower-case names without the prefix.
        expires_at: Unix time in seconds after which it must not be delivered; None for never.
        not_before: Unix time in seconds before which it must not be delivered; None for at once.
        baggage: Passed on, beside the event; empty for none.
    """

    app_id: str
    pubsub: str
    topic: str
    traceparent: str = ""
    tracestate: str = ""
    overrides: Mapping[str, str] | None = None
    expires_at: float | None = None
    not_before: float | None = None
    baggage: str = ""


def overrides(metadata: Mapping[str, str]) -> Mapping[str, str] | None:
    """Collect ``cloudevent.*`` metadata; names count without regard to case.

    With another ``traceparent`` goes its own ``tracestate`` or none; with one that is invalid goes neither.
    """
    found: dict[str, str] = {}
    for name, value in metadata.items():
        lowered = name.lower()
        if value and lowered.startswith(OVERRIDE) and lowered[len(OVERRIDE) :] in OVERRIDES:
            found[lowered[len(OVERRIDE) :]] = value
    if "traceparent" in found:
        if is_traceparent(found["traceparent"]):
            found.setdefault("tracestate", "")
        else:
            del found["traceparent"]
            found.pop("tracestate", None)
    return found or None


_now: tuple[int, str] = (0, "")


def timestamp() -> str:
    """Give the local time as RFC 3339 with seconds; formatted once a second."""
    global _now
    second = int(time.time())
    if _now[0] != second:
        text = datetime.fromtimestamp(second).astimezone().isoformat(timespec="seconds")
        _now = (second, text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text)
    return _now[1]


def build_binary(
    options: PublishOptions, content_type: str | None, body: bytes, prefix: str
) -> tuple[dict[str, str], bytes]:
    """Make the headers and body of an event that the gateway builds.

    JSON that does not parse goes as a JSON string, as Dapr sends it; what is no UTF-8 either, as it is.
    """
    datacontenttype = content_type or "text/plain"
    body = as_json(datacontenttype, body)
    encode = encode_header_value
    headers = required_headers(new_id(), options.app_id, DEFAULT_TYPE, prefix)
    headers[prefix + "datacontenttype"] = encode(datacontenttype)
    headers[prefix + "time"] = timestamp()
    if options.traceparent:
        headers[prefix + "traceparent"] = options.traceparent
    if options.tracestate:
        headers[prefix + "tracestate"] = encode(options.tracestate)
    if options.expires_at is not None:
        headers[prefix + "expiration"] = _rfc3339(options.expires_at)
    if options.overrides:
        for name, value in options.overrides.items():
            if name == "traceparent":
                headers.setdefault(prefix + "traceid", value)
            headers[prefix + name] = encode(value)
        if not headers.get(prefix + "tracestate"):
            headers.pop(prefix + "tracestate", None)
    return headers, body


def as_json(datacontenttype: str | None, body: bytes) -> bytes:
    """Give data that are said to be JSON, and are not, as a JSON string: what stands in an envelope must not end it."""
    if _placement(datacontenttype or "application/json") is Placement.JSON:
        try:
            parse_json(body)
        except ValueError:
            with suppress(UnicodeDecodeError):
                return orjson.dumps(body.decode())
    return body


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def build_enveloped(options: PublishOptions, content_type: str | None, body: bytes) -> tuple[str, bytes]:
    """Make the structured event of a publish, as other programs on its broker expect it; give its id as well.

    Its members are in alphabetical order, and JSON data stand in it as they were given. JSON that does not parse is a
    string, and what is no UTF-8 is base64.
    """
    datacontenttype = content_type or "text/plain"
    members: dict[str, object] = {
        "datacontenttype": datacontenttype,
        "id": new_id(),
        "pubsubname": options.pubsub,
        "source": options.app_id,
        "specversion": SPECVERSION,
        "time": timestamp(),
        "topic": options.topic,
        "traceid": options.traceparent,
        "traceparent": options.traceparent,
        "tracestate": options.tracestate,
        "type": DEFAULT_TYPE,
    }
    if options.expires_at is not None:
        members["expiration"] = _rfc3339(options.expires_at)
    if options.overrides:
        if "traceparent" in options.overrides:
            members["traceid"] = options.overrides["traceparent"]
        members |= options.overrides
    name, data = _member(_placement(datacontenttype), body)
    members[name] = data
    return str(members["id"]), orjson.dumps(members, option=orjson.OPT_SORT_KEYS)


def _member(where: Placement, body: bytes) -> tuple[str, object]:
    with suppress(UnicodeDecodeError):
        if where is Placement.JSON:
            try:
                parse_json(body)
            except ValueError:
                return "data", body.decode()
            return "data", orjson.Fragment(body)
        if where is Placement.TEXT:
            return "data", body.decode()
    return "data_base64", base64.b64encode(body).decode()


def complete(options: PublishOptions, body: bytes) -> dict[str, object]:
    """Give the members of an event that the application built, with what is missing.

    A missing ``id`` stays missing, as in Dapr.

    Raises:
        EventError: It is not a JSON object.
    """
    members = members_of(body, "cannot create cloudevent")
    members.setdefault("source", DEFAULT_SOURCE)
    members.setdefault("type", DEFAULT_TYPE)
    members.setdefault("specversion", SPECVERSION)
    members["topic"] = options.topic
    members["pubsubname"] = options.pubsub
    _set_trace(members, options)
    members.setdefault("time", timestamp())
    if options.expires_at is not None:
        members["expiration"] = _rfc3339(options.expires_at)
    return members


def written(members: Mapping[str, object]) -> bytes:
    """Write the members of an event in alphabetical order.

    Raises:
        EventError: They are nested too deeply.
    """
    try:
        return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        raise EventError(f"cannot create cloudevent: nested more than {MAX_LEVELS} levels") from None


def build_structured(options: PublishOptions, body: bytes, prefix: str) -> tuple[dict[str, str], bytes]:
    """Complete an event that the application built, as the mesh's own layout has it.

    Raises:
        EventError: It is not a JSON object, or nested too deeply.
    """
    members = complete(options, body)
    headers = {CONTENT_TYPE: CLOUDEVENTS_JSON}
    if isinstance(expiration := members.get("expiration"), str):
        headers[prefix + "expiration"] = encode_header_value(expiration)
    return headers, written(members)


def _set_trace(members: dict[str, object], options: PublishOptions) -> None:
    """Leave the event in its own trace; put one without a valid ``traceparent`` into that of its publish."""
    traceid, given = members.get("traceid"), members.get("traceparent")
    own = given or traceid  # An envelope's ``traceid`` is a whole ``traceparent``.
    if isinstance(own, str) and is_traceparent(own):
        if not isinstance(members.get("tracestate"), str):
            members["tracestate"] = ""  # That of the publish goes with another trace.
    else:
        if traceid == given:
            traceid = None
        own = options.traceparent
        members["tracestate"] = options.tracestate
    members["traceparent"] = own
    members["traceid"] = traceid if isinstance(traceid, str) and traceid else own


class Envelope(msgspec.Struct, frozen=True):
    """An event as an application receives it.

    Attributes:
        body: What is posted.
        traceparent: The publisher's span; empty when there is none that is valid.
        tracestate: Passed on with it; empty when it is none.
        expires_at: Unix time in seconds; None for never.
        raw: Whether the subscription takes payloads as they are.
    """

    body: bytes
    traceparent: str = ""
    tracestate: str = ""
    expires_at: float | None = None
    raw: bool = False


def read(headers: Mapping[str, str], body: bytes, *, pubsub: str, topic: str, prefix: str) -> Envelope:
    """Make the envelope of a message.

    Raises:
        EventError: It is no CloudEvent.
    """
    if prefix + "specversion" in headers:
        return _read_binary(headers, body, pubsub, topic, prefix)
    # Built by an application, published raw, or by something that is not a gateway.
    members = members_of(body)
    trace = _trace(members.get("traceparent"), members.get("tracestate"))
    return Envelope(body, *trace, _expiry(members.get("expiration")))


def _trace(traceparent: object, tracestate: object) -> tuple[str, str]:
    """Give what may be passed on in headers of these names; a state without its trace means nothing."""
    if not isinstance(traceparent, str) or not is_traceparent(traceparent):
        return "", ""
    return traceparent, tracestate if isinstance(tracestate, str) and is_tracestate(tracestate) else ""


def _expiry(text: object) -> float | None:
    if not isinstance(text, str) or not text:
        return None
    try:
        return parse_instant(text)
    except ValueError:
        return None


def _read_binary(headers: Mapping[str, str], body: bytes, pubsub: str, topic: str, prefix: str) -> Envelope:
    attributes = attributes_of(headers, prefix, "replace")  # What a foreign producer encoded badly is not lost for it.
    traceparent = attributes.setdefault("traceparent", "")
    tracestate = attributes.setdefault("tracestate", "")
    attributes.setdefault("traceid", traceparent)
    attributes["topic"] = topic
    attributes["pubsubname"] = pubsub
    rest = orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS)
    data = _data(_placement(attributes.get("datacontenttype") or "application/json"), body)
    expires_at = _expiry(attributes.get("expiration"))
    return Envelope(b"".join((*data, b",", rest[1:])), *_trace(traceparent, tracestate), expires_at)


def _data(where: Placement, body: bytes) -> tuple[bytes, ...]:
    """Begin the envelope with its data, in pieces; what is no UTF-8 can stand in JSON as base64 only."""
    with suppress(UnicodeDecodeError):
        if where is Placement.TEXT:
            return b'{"data":', orjson.dumps(body.decode())
        if where is Placement.JSON:
            if not body.isascii():
                body.decode()
            return b'{"data":', body or b"null"
    return b'{"data_base64":"', base64.b64encode(body), b'"'


def wrap_raw(body: bytes, *, pubsub: str, topic: str, traceparent: str) -> bytes:
    """Make the generated event in which a ``rawPayload`` subscription receives any message."""
    members = {
        "data_base64": base64.b64encode(body).decode(),
        "datacontenttype": "application/octet-stream",
        "id": new_id(),
        "pubsubname": pubsub,
        "source": DEFAULT_SOURCE,
        "specversion": SPECVERSION,
        "topic": topic,
        "type": DEFAULT_TYPE,
    }
    if traceparent:
        members |= {"traceid": traceparent, "traceparent": traceparent, "tracestate": ""}
    return orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
