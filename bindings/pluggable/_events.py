"""Messages as pluggable components carry them: data, a content type, and texts by name.

An event travels as one JSON object, as Dapr's runtime publishes it, so that its subscribers understand it. What it was
here stands beside it, for components that keep metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from bindings.pluggable._messages import Message as Told
from mesh.broker import Message
from mesh.errors import EventError, PublishRejectedError
from mesh.event import CLOUDEVENTS_JSON, from_headers, from_structured, to_headers, to_structured

__all__ = ["PREFIX", "fields_of", "message_of"]

PREFIX = "ce-"
EVENT = PREFIX + "specversion"
CONTENT_TYPE = "content-type"
KEY, IDENTITY, BINARY = "brokermesh.key", "brokermesh.id", "brokermesh.binary"
OWN = frozenset({KEY, IDENTITY, BINARY})
# What Dapr says in every event, and a gateway anew for each subscription.
PLACE = ("pubsubname", "topic")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[!-~](?:[ -~\t]*[!-~])?|")


def fields_of(message: Message, pubsub: str, topic: str) -> dict[str, Any]:
    """Give data, metadata and content type.

    Raises:
        PublishRejectedError: It is no CloudEvent, though it says so.
    """
    headers = dict(message.headers)
    metadata = {KEY: message.key, IDENTITY: message.id}
    data, kind = message.body, headers.pop(CONTENT_TYPE, "")
    if EVENT in headers:
        try:
            event = from_headers(headers, data, PREFIX)
            place = dict(zip(PLACE, (pubsub, topic), strict=True))
            data = to_structured(replace(event, extensions={**event.extensions, **place}))
        except EventError as error:
            raise PublishRejectedError(f"it cannot be published as one JSON object: {error}") from error
        metadata[BINARY] = kind or "1"
        kind = CLOUDEVENTS_JSON
        headers = {name: value for name, value in headers.items() if not name.startswith(PREFIX)}
    told = {name: value for name, value in metadata.items() if value is not None}
    return {"data": data, "metadata": {**headers, **told}, "content_type": kind}


def message_of(told: Told) -> Message:
    """Read a message back, or one from somebody else."""
    metadata: Mapping[str, str] = told.metadata
    headers = {
        name: value
        for name, value in metadata.items()
        if name not in OWN and _NAME.fullmatch(name) and _VALUE.fullmatch(value)
    }
    if told.content_type and _VALUE.fullmatch(told.content_type):
        headers[CONTENT_TYPE] = told.content_type
    key, identity, data = metadata.get(KEY), metadata.get(IDENTITY), told.data
    if BINARY in metadata:
        try:
            event = from_structured(data)
        except EventError:  # Something on the way has changed it; it is read as that of anybody else.
            return Message(headers, data, key, identity)
        extensions = {name: value for name, value in event.extensions.items() if name not in PLACE}
        headers.pop(CONTENT_TYPE, None)
        if (kind := metadata[BINARY]) != "1":
            headers[CONTENT_TYPE] = kind
        headers |= to_headers(replace(event, extensions=extensions), PREFIX)
        data = event.data
    return Message(headers, data, key, identity)
