"""An event as applications on gRPC get it: the envelope's members in their places, the others in ``extensions``.

Source: Dapr's runtime, delivery to gRPC applications.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import orjson

from gateway.grpc.messages import Message, message
from mesh.event import is_structured, media_type

__all__ = ["cloud_event", "topic_event"]

_TopicEvent, _CloudEvent = message("TopicEventRequest"), message("TopicEventCERequest")
_FIELDS = {
    "id": "id",
    "source": "source",
    "type": "type",
    "specversion": "spec_version",
    "datacontenttype": "data_content_type",
}
_OTHERS = frozenset({"data", "data_base64", "topic", "pubsubname"})


def topic_event(envelope: bytes, path: str) -> Message:
    """Make the message of one event from its envelope, which is JSON."""
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
    return orjson.dumps(data)


def _is_json(kind: str) -> bool:
    return media_type(kind) == "application/json" or is_structured(kind)
