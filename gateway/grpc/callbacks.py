"""What an application on gRPC is told in place of a posted body: a row for each kind.

Source: Dapr 1.18, delivery to gRPC applications.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

import orjson

from gateway.grpc._not_served import NotServedError
from gateway.grpc.events import UNREADABLE, cloud_event, readable, topic_event
from gateway.grpc.messages import COMMON, RUNTIME, Message, message
from gateway.grpc.wire import StatusError
from gateway.json_value import JSON_TYPE, json_value
from gateway.status import Code
from mesh.application import DROP_REASON, BindingAnswer, Headers, Kind
from mesh.blocks.items import named_options
from mesh.blocks.job_record import DATA_TYPE_HEADER
from mesh.errors import EventError
from mesh.event import encode_header_value

__all__ = ["ALPHA", "CALLBACK", "CALLBACKS", "binding_event"]

CALLBACK, ALPHA = f"{RUNTIME}.AppCallback", f"{RUNTIME}.AppCallbackAlpha"
_Reply, _Bulk, _BulkReply = (
    message(name) for name in ("TopicEventResponse", "TopicEventBulkRequest", "TopicEventBulkResponse")
)
_BindingEvent, _BindingReply = message("BindingEventRequest"), message("BindingEventResponse")
_Entry = message("TopicEventBulkRequestEntry")
_JobEvent, _JobReply = message("JobEventRequest"), message("JobEventResponse")
_POST = message("HTTPExtension", COMMON).Verb.Value("POST")
PARALLEL = 1  # Of BindingEventConcurrency.
_SAID = ("SUCCESS", "RETRY", "DROP")
_SETTLED = tuple(orjson.dumps({"status": said}) for said in _SAID)


class Asked(Protocol):
    """The application, as callbacks need it."""

    ways: dict[str, tuple[str, str]]

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
    """Ask, by either name; None = the application has neither."""
    try:
        return await _ask_by_either(application, "OnBulkTopicEvent", request, _BulkReply, headers)
    except StatusError as error:
        if error.code is not Code.UNIMPLEMENTED:
            raise
        _warn_unimplemented(application, "OnBulkTopicEvent", path, error)
    return None


async def _ask_by_either(application: Asked, name: str, request: bytes, gives: Any, headers: Headers) -> Message:
    """Ask by the name that the application has for it, today's or the one before, which is remembered."""
    first, second = application.ways.get(name, (CALLBACK, ALPHA))
    not_served: NotServedError | None = None
    try:
        return (await application.ask(first, _named(first, name), request, gives, headers))[0]
    except NotServedError as error:
        not_served = error
    except StatusError as error:
        if error.code is not Code.UNIMPLEMENTED:
            raise
    try:
        reply, _ = await application.ask(second, _named(second, name), request, gives, headers)
    except StatusError as error:
        if error.code is not Code.UNIMPLEMENTED or not_served is None:
            raise
        raise not_served from None
    application.ways[name] = (second, first)
    return reply


def _named(service: str, name: str) -> str:
    return name if service == CALLBACK else f"{name}Alpha1"


async def _job(application: Asked, path: str, headers: Headers, body: bytes) -> bytes:
    """Hand a job over; an application that does not know it has taken it, as over HTTP."""
    name, fields = unquote(path.removeprefix("/job/")), dict(headers)
    data_type = fields.get(DATA_TYPE_HEADER)
    request = _JobEvent(name=name, method=f"job/{name}", http_extension={"verb": _POST})
    if body or data_type is not None:
        try:
            request.data.value = json_value(body) if data_type is None else body
        except ValueError as error:
            raise EventError(str(error)) from None
        request.data.type_url = request.content_type = JSON_TYPE if data_type is None else data_type
    kept = [(field, value) for field, value in _without_type(headers) if field != DATA_TYPE_HEADER]
    try:
        await _ask_by_either(application, "OnJobEvent", request.SerializeToString(), _JobReply, kept)
    except StatusError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        application.warn_once(f"job {name!r}: the application answered NOT_FOUND, which counts as taken")
    return b""


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
    """Leave out the type of the body that is not sent, and encode what gRPC's metadata cannot be: not ASCII."""
    return [
        (name, value if value.isascii() else encode_header_value(value))
        for name, value in headers
        if name != "Content-Type"
    ]


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
    "job": _job,
}
"""By kind. An application on gRPC is not told of what is not here."""
