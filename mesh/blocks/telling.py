"""What a tap is told of an operation besides its outcome: of each block what it is about, and with what it was asked.

Details are names and numbers, never a value. Requests and replies are noted as they are; what is told of them is
decided in `mesh/tap/content.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from mesh.blocks.consumer import about
from mesh.blocks.durable import DurableCall
from mesh.blocks.invocation import Answer, Call
from mesh.blocks.topics import BulkPublish, Publish
from mesh.event import CLOUDEVENTS_JSON
from mesh.passing import Part, Passing, Value

if TYPE_CHECKING:
    from mesh.blocks.topics import PubSubComponent
    from mesh.broker import Message
    from mesh.operation import Operation

__all__ = ["describe"]

MAX_NAME = 300
_Details = Callable[[Passing, Any, Any], None]
# Fields of arguments that are names or numbers: what is asked about, as it is called in details.
_FIELDS: Mapping[str, Mapping[str, str]] = {
    "actors": {"id": "id", "method": "method", "name": "name", "key": "key"},
    "bindings": {"operation": "operation"},
    "configuration": {"key": "key"},
    "conversation": {"max_tokens": "maxTokens"},
    "crypto": {"key_name": "key", "name": "key", "algorithm": "algorithm"},
    "jobs": {"name": "job", "prefix": "prefix"},
    "lock": {"resource": "resource", "owner": "owner", "seconds": "seconds"},
    "secrets": {"name": "name"},
    "state": {"key": "key", "prefix": "prefix", "limit": "limit"},
    "workflows": {"id": "instance", "name": "name"},
}
_COUNTED = ("items", "keys", "entries")
_OBJECTS = frozenset({"host", "subscribe_stream", "watch"})
"""What is asked with objects of this process, or answered by what lasts."""


def describe(passing: Passing, operation: Operation, result: object) -> None:
    """Note what is told of an operation; ``result`` is None where it failed."""
    asked = operation.arguments
    special = _SPECIAL.get(type(asked))
    if special is not None:
        special(passing, operation, result)
        return
    for field, name in _FIELDS.get(passing.block, {}).items():
        value = getattr(asked, field, None)
        if isinstance(value, (str, int, float)) and value != "":
            passing.details[name] = _short(value)
    for field in _COUNTED:
        many = getattr(asked, field, None)
        if isinstance(many, (list, tuple)) and many:
            passing.details["count"] = len(many)
    if passing.block == "actors" and (id_ := passing.details.get("id")):
        passing.details["type"] = operation.target
        passing.target = f"{operation.target}/{id_}"
    if passing.method not in _OBJECTS and not operation.method.streamed:
        passing.request = Part(value=asked)
        if result is not None:
            passing.reply = Part(value=result)


def _short(value: Value) -> Value:
    return value[:MAX_NAME] if isinstance(value, str) else value


def _invoked(passing: Passing, operation: Operation, answer: Answer | None) -> None:
    call = cast("Call", operation.arguments)
    passing.asked(call.verb, call.target, call.headers, call.body if isinstance(call.body, bytes) else None)
    if call.grpc:
        passing.details["grpc"] = True
    if answer is not None:
        passing.answered(answer.status, answer.headers, answer.body)
        if call.grpc and (status := answer.grpc_status) is not None:
            passing.details["grpcStatus"] = status


def _called(passing: Passing, operation: Operation, identity: object) -> None:
    call = cast("DurableCall", operation.arguments)
    passing.asked(call.verb, call.target, call.headers, call.body)
    if isinstance(identity, str):
        passing.details["id"] = identity


def _published(passing: Passing, operation: Operation, result: object) -> None:
    asked = cast("Publish", operation.arguments)
    _topic(passing, asked.topic)
    metadata = tuple(asked.metadata.items())
    event = None
    if operation.kept is not None:
        message, _, component = cast("tuple[Message, object, PubSubComponent]", operation.kept)
        event = component.envelope(message, asked.topic)
    if event is None:  # It is raw, or was refused before it was one.
        passing.request = Part(metadata, asked.content_type or "", asked.body)
        return
    passing.request = Part(metadata, CLOUDEVENTS_JSON, event)
    about(passing, event)


def _published_many(passing: Passing, operation: Operation, result: object) -> None:
    asked = cast("BulkPublish", operation.arguments)
    _topic(passing, asked.topic)
    passing.details["count"] = len(asked.entries)
    entries = [
        {"entryId": each.entry_id, "contentType": each.content_type, "event": each.body} for each in asked.entries
    ]
    passing.request = Part(tuple(asked.metadata.items()), value=entries)


def _topic(passing: Passing, topic: str) -> None:
    passing.details |= {"pubsub": passing.target, "topic": topic}
    passing.target = f"{passing.target}/{topic}"


_SPECIAL: Mapping[type, _Details] = {
    Call: _invoked,
    DurableCall: _called,
    Publish: _published,
    BulkPublish: _published_many,
}
