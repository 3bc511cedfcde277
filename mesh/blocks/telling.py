"""What a tap is told of an operation besides its outcome: of each block what it is about, and with what it was asked.

Details are names and numbers, never a value. Requests and replies are noted as they are; what is told of them is
decided in `mesh/tap/content.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from mesh.blocks.consumer import about
from mesh.blocks.durable import DurableCall
from mesh.blocks.invocation import Answer, Call
from mesh.blocks.job_record import Schedule
from mesh.blocks.topics import BulkEntry, BulkPublish, Publish
from mesh.passing import Part, Passing

if TYPE_CHECKING:
    from mesh.blocks.topics import PubSubComponent
    from mesh.broker import Message
    from mesh.operation import Operation

__all__ = ["Telling"]

MAX_NAME = 300
# Fields of arguments that are names or numbers: what is asked about, as it is called in details.
_FIELDS: Mapping[str, Mapping[str, str]] = {
    "actors": {"id": "id", "method": "method", "name": "name", "key": "key"},
    "bindings": {"operation": "operation"},
    "configuration": {"key": "key"},
    "conversation": {"max_tokens": "maxTokens"},
    "crypto": {"key_name": "key", "name": "key", "algorithm": "algorithm"},
    "jobs": {"name": "job", "prefix": "prefix"},
    "lock": {"resource": "resource", "owner": "owner", "seconds": "seconds"},
    "pubsub": {"topic": "topic"},
    "secrets": {"name": "name"},
    "state": {"key": "key", "prefix": "prefix", "limit": "limit"},
    "workflows": {"id": "instance", "name": "name"},
}
_OBJECTS = frozenset({"host", "subscribe_stream", "watch"})
"""What is asked with objects of this process, or answered by what lasts."""


class Telling:
    """See ``mesh.passing.Taps``."""

    @staticmethod
    def asked(passing: Passing, operation: Operation) -> None:
        """Note what is asked, before it is done: arguments may be used up by that."""
        asked = operation.arguments
        match asked:
            case Call():
                passing.asked(asked.verb, asked.target, asked.headers, _whole(asked.body))
                if asked.grpc:
                    passing.details["grpc"] = True
            case DurableCall():
                passing.asked(asked.verb, asked.target, asked.headers, asked.body)
            case Publish():
                _topic(passing, asked.topic)
                passing.request = Part(tuple(asked.metadata.items()), asked.content_type or "", asked.body)
            case BulkPublish():
                _topic(passing, asked.topic)
                passing.details["count"] = len(asked.entries)
                passing.request = Part(tuple(asked.metadata.items()), value=[_entry(each) for each in asked.entries])
            case _:
                _asked(passing, operation, asked)

    @staticmethod
    def came(passing: Passing, operation: Operation, result: object) -> None:
        """Note what came of it; ``result`` is None where it failed."""
        asked = operation.arguments
        if isinstance(result, Answer):
            passing.answered(result.status, result.headers, result.body)
            if (status := result.grpc_status) is not None:
                passing.details["grpcStatus"] = status
        elif isinstance(asked, DurableCall):
            if isinstance(result, str):
                passing.details["id"] = result
        elif isinstance(asked, Publish):
            _stored(passing, asked, operation.kept)
        elif result is not None and _is_value(operation):
            passing.reply = Part(value=result)


def _is_value(operation: Operation) -> bool:
    method = operation.method
    return method.name not in _OBJECTS and not method.streamed


def _whole(body: object) -> bytes | None:
    return body if isinstance(body, bytes) else None


def _asked(passing: Passing, operation: Operation, asked: object) -> None:
    details = passing.details
    for field, name in _FIELDS.get(passing.block, {}).items():
        value = getattr(asked, field, None)
        if isinstance(value, (str, int, float)) and value != "":
            details[name] = value[:MAX_NAME] if isinstance(value, str) else value
    for field in ("items", "keys"):
        many = getattr(asked, field, None)
        if isinstance(many, (list, tuple)) and many:
            details["count"] = len(many)
            if isinstance(many, list):  # What is done with is taken out of it.
                asked = dataclasses.replace(cast("Any", asked), **{field: [*many]})
    if isinstance(asked, Schedule):
        details["job"] = asked.job.name[:MAX_NAME]
    if passing.block == "actors" and (id_ := details.get("id")):
        details["type"] = operation.target
        passing.target = f"{operation.target}/{id_}"
    if _is_value(operation):
        passing.request = Part(value=asked)


def _topic(passing: Passing, topic: str) -> None:
    passing.details |= {"pubsub": passing.target, "topic": topic}
    passing.target = f"{passing.target}/{topic}"


def _entry(entry: BulkEntry) -> Mapping[str, object]:
    return {"entryId": entry.entry_id, "contentType": entry.content_type, "event": entry.body}


def _stored(passing: Passing, asked: Publish, kept: object) -> None:
    """Note an event as applications receive it; one that is raw, or was refused before it was one, stays as it is."""
    if kept is None:
        return
    message, _, component = cast("tuple[Message, object, PubSubComponent]", kept)
    about(passing, message, component.broker.features.event_prefix, message.body)
    if passing.request is not None:
        passing.request.event = partial(component.envelope, message, asked.topic)
