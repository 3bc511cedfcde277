"""What an application on gRPC is told in place of a posted body: a row for each kind.

Source: Dapr 1.18, delivery to gRPC applications.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import orjson

from gateway.grpc._not_served import NotServedError
from gateway.grpc.events import UNREADABLE, cloud_event, readable, topic_event
from gateway.grpc.messages import RUNTIME, Message, message
from gateway.grpc.wire import StatusError
from gateway.status import Code
from mesh.application import DROP_REASON, BindingAnswer, Headers, Kind
from mesh.blocks.items import named_options
from mesh.errors import EventError

__all__ = ["ALPHA", "CALLBACK", "CALLBACKS", "binding_event"]

CALLBACK, ALPHA = f"{RUNTIME}.AppCallback", f"{RUNTIME}.AppCallbackAlpha"
_Reply, _Bulk, _BulkReply = (
    message(name) for name in ("TopicEventResponse", "TopicEventBulkRequest", "TopicEventBulkResponse")
)
_BindingEvent, _BindingReply = message("BindingEventRequest"), message("BindingEventResponse")
_Entry = message("TopicEventBulkRequestEntry")
PARALLEL = 1  # Of BindingEventConcurrency.
_SAID = ("SUCCESS", "RETRY", "DROP")
_SETTLED = tuple(orjson.dumps({"status": said}) for said in _SAID)


class Asked(Protocol):
    """The application, as callbacks need it."""

    bulk: tuple[str, str]

    async def ask(
        self, service: str, name: str, request: bytes, gives: Any, headers: Headers = ()
    ) -> tuple[Message, Headers]: ...

    def warn_once(self, text: str) -> None: ...


async def _event(application: Asked, path: str, headers: Headers, body: bytes) -> bytes:
    """Hand one event over; one that nobody takes is done with, as in Dapr."""
    request = topic_event(body, path, _alone).SerializeToString()
    try:
        reply, _ = await application.ask(CALLBACK, "OnTopicEvent", request, _Reply, _without_type(headers))
    except StatusError as error:
        if error.code is not Code.UNIMPLEMENTED:
            raise
        _warn_unimplemented(application, "OnTopicEvent", path, error)
        return _SETTLED[0]
    return _SETTLED[reply.status if reply.status in (0, 1, 2) else 1]


async def _events(application: Asked, path: str, headers: Headers, body: bytes) -> bytes:
    """Hand a batch over."""
    batch = orjson.loads(body)
    entries: list[Message] = []
    statuses: list[dict[str, str]] = []
    for each in batch["entries"]:
        try:
            entry = _entry(each)
            readable(_Bulk(entries=[entry]))
        except UNREADABLE as error:
            said = {"status": "DROP", DROP_REASON: f"the event does not go into a message of gRPC: {error}"}
            statuses.append({"entryId": each["entryId"], **said})
        else:
            entries.append(entry)
    if entries:
        request = _Bulk(
            id=batch["id"],
            entries=entries,
            metadata=batch["metadata"],
            topic=batch["topic"],
            pubsub_name=batch["pubsubname"],
            type=batch["type"],
            path=path,
        )
        reply = await _ask_for_batch(application, path, request.SerializeToString(), _without_type(headers))
        if reply is None:
            statuses += [{"entryId": each.entry_id, "status": "SUCCESS"} for each in entries]
        else:
            statuses += [{"entryId": each.entry_id, "status": _said(each.status)} for each in reply.statuses]
    return orjson.dumps({"statuses": statuses})


async def _ask_for_batch(application: Asked, path: str, request: bytes, headers: Headers) -> Message | None:
    """Ask by the name that the application has for it, which is remembered; None = it has none."""
    first, second = application.bulk
    not_served: NotServedError | None = None
    try:
        return (await _ask_by(application, first, request, headers))[0]
    except NotServedError as error:
        not_served = error
    except StatusError as error:
        if error.code is not Code.UNIMPLEMENTED:
            raise
    try:
        reply, _ = await _ask_by(application, second, request, headers)
    except StatusError as error:
        if error.code is not Code.UNIMPLEMENTED:
            raise
        if not_served is not None:
            raise not_served from None
        _warn_unimplemented(application, "OnBulkTopicEvent", path, error)
        return None
    application.bulk = (second, first)
    return reply


async def _ask_by(application: Asked, service: str, request: bytes, headers: Headers) -> tuple[Message, Headers]:
    name = "OnBulkTopicEvent" if service == CALLBACK else "OnBulkTopicEventAlpha1"
    return await application.ask(service, name, request, _BulkReply, headers)


def _alone(event: Message) -> Message:
    return event


def _entry(given: Mapping[str, Any]) -> Message:
    entry = _Entry(entry_id=given["entryId"], content_type=given["contentType"], metadata=given["metadata"])
    event = given["event"]
    if isinstance(event, str):
        entry.bytes = base64.b64decode(event)
    else:
        entry.cloud_event.CopyFrom(cloud_event(event))
    return entry


def _said(status: int) -> str:
    return _SAID[status] if 0 <= status < len(_SAID) else "RETRY"


def _without_type(headers: Headers) -> Headers:
    """Leave out the type of the body that is not sent."""
    return [(name, value) for name, value in headers if name != "Content-Type"]


def _warn_unimplemented(application: Asked, name: str, path: str, error: StatusError) -> None:
    text = f"the application does not take events of the route {path!r}, which are dropped: {name} is UNIMPLEMENTED"
    application.warn_once(f"{text} ({error.message[:200]})" if error.message else text)


async def binding_event(application: Asked, name: str, headers: Headers, body: bytes) -> BindingAnswer:
    """Hand over an event of an input binding."""
    metadata = {name: value for name, value in headers if name not in ("Content-Type", "mesh-binding")}
    try:
        request = _BindingEvent(name=name, data=body, metadata=metadata).SerializeToString()
    except UNREADABLE as error:
        raise EventError(f"the event does not go into a message of gRPC: {error}") from None
    reply, _ = await application.ask(CALLBACK, "OnBindingEvent", request, _BindingReply, _without_type(headers))
    states = [
        {
            "key": each.key,
            "value": bytes(each.value),
            "etag": each.etag.value,
            "metadata": dict(each.metadata),
            "options": named_options(each.options.concurrency, each.options.consistency),
        }
        for each in reply.states
    ]
    parallel = reply.concurrency == PARALLEL
    return BindingAnswer(bytes(reply.data), tuple(reply.to), parallel, reply.store_name, states, message=True)


CALLBACKS: Mapping[Kind, Callable[[Asked, str, Headers, bytes], Awaitable[bytes]]] = {
    "event": _event,
    "events": _events,
}
"""By kind. An application on gRPC is not told of what is not here."""
