"""An event as applications on gRPC get it: the envelope's members in their places, the others in ``extensions``.

Source: Dapr's runtime, delivery to gRPC applications.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping

import orjson
from google.protobuf.message import DecodeError, EncodeError

from gateway.grpc.messages import Message, message
from mesh.errors import EventError
from mesh.event import is_structured, media_type

__all__ = ["UNREADABLE", "cloud_event", "readable", "topic_event"]

UNREADABLE = (ValueError, TypeError, RecursionError, DecodeError, EncodeError)
_TopicEvent, _CloudEvent = message("TopicEventRequest"), message("TopicEventCERequest")
_FIELDS = {
    "id": "id",
    "source": "source",
    "type": "type",
    "specversion": "spec_version",
    "datacontenttype": "data_content_type",
}
_OTHERS = frozenset({"data", "data_base64", "topic", "pubsubname"})


def topic_event(envelope: bytes, path: str, into: Callable[[Message], Message]) -> Message:
    """Make the message of one event from its envelope, which is JSON, and from that what is sent.

    Raises:
        EventError: The receiver could not read it.
    """
    try:
        made = into(_topic_event(envelope, path))
        readable(made)
    except UNREADABLE as error:
        raise EventError(f"the event does not go into a message of gRPC: {error}") from None
    return made


def readable(made: Message) -> bytes:
    """Write a message that others can read: how deep it may be nested counts when it is read."""
    data: bytes = made.SerializeToString()
    made.FromString(data)
    return data


def _topic_event(envelope: bytes, path: str) -> Message:
    members = orjson.loads(envelope)
    made = _TopicEvent(**_attributes(members), data=_data(members), path=path)
    made.topic, made.pubsub_name = str(members.get("topic", "")), str(members.get("pubsubname", ""))
    made.extensions.update(_extensions(members))
    return made


def cloud_event(members: Mapping[str, object]) -> Message:
    """Make the message of an event of a batch."""
    made = _CloudEvent(**_attributes(members), data=_data(members))
    made.extensions.update(_extensions(members))
    return made


def _attributes(members: Mapping[str, object]) -> dict[str, str]:
    return {field: str(members[name]) for name, field in _FIELDS.items() if members.get(name) is not None}


def _extensions(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if name not in _FIELDS and name not in _OTHERS}


def _data(members: Mapping[str, object]) -> bytes:
    """Give the data as it was published: text as it is, everything else as JSON."""
    encoded = members.get("data_base64")
    if isinstance(encoded, str):
        return base64.b64decode(encoded)
    if "data" not in members:
        return b""
    data, kind = members["data"], members.get("datacontenttype")
    if isinstance(data, str) and isinstance(kind, str) and not _is_json(kind):
        return data.encode("utf-8", "surrogatepass")
    return _dumped(data)


def _dumped(data: object) -> bytes:
    """Write JSON; what is nested deeper than orjson writes was read, and is no less an event."""
    try:
        return orjson.dumps(data)
    except orjson.JSONEncodeError:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _is_json(kind: str) -> bool:
    return media_type(kind) == "application/json" or is_structured(kind)
