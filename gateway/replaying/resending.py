"""What is sent to do again what was seen: one request to the HTTP API of a gateway.

A call goes where it went, or to another application. An event is published again, under another id, since a broker or a
subscriber may have kept the former one. An event that arrived is posted to the application that is named, as it came.
Each has a trace of its own, and the mark ``meshreplayed``: the header of a call, the attribute of an event.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import orjson

from mesh.blocks.invocation import OUTSIDE, forwardable
from mesh.event import CLOUDEVENTS_JSON, media_type, new_id
from mesh.tap.content import HIDDEN
from mesh.tap.sight import Content, Seen, Sight

__all__ = ["MARK", "Kind", "Resend", "Skipped", "kind_of", "resend"]

MARK = "meshreplayed"
# What a gateway says of the caller, and what is about another trace or another length.
_NOT_SENT = frozenset(
    {
        "baggage",
        "content-length",
        "dapr-callee-app-id",
        "dapr-caller-app-id",
        "dapr-caller-namespace",
        "expect",
        "forwarded",
        "grpc-trace-bin",
        "host",
        "traceparent",
        "tracestate",
        "x-forwarded-for",
        "x-forwarded-host",
        MARK,
    }
)
_SET_AT_PUBLISH = ("pubsubname", "topic", "traceid", "traceparent", "tracestate", "expiration")


class Kind(StrEnum):
    """What something is replayed as."""

    CALL = "call"
    EVENT = "event"
    DELIVERY = "delivery"


@dataclass(frozen=True, slots=True)
class Resend:
    """A request to a gateway.

    Attributes:
        kind: What it does again.
        source: The app id of who asked then, whose gateway is to be asked now; "" = not known.
        target: Whom it goes to now: an app id, of an event ``component/topic``.
        title: What is asked, in a few words: verb and path, or the route of an event.
        verb: HTTP method.
        path: On the gateway, with its query; what must be quoted is.
        headers: To send.
        body: To send.
        trace: The id of the trace that it begins.
        withheld: The names of headers that it lacks, since their values are never told.
    """

    kind: Kind
    source: str
    target: str
    title: str
    verb: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    trace: str
    withheld: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """It cannot be sent again, and why."""

    reason: str


def kind_of(sight: Sight) -> Kind | None:
    """Tell what a sight is replayed as; None = it is neither call nor event, or another sight of the same one."""
    if sight.seen is Seen.ASKED:
        if (sight.block, sight.method) == ("invocation", "invoke"):
            return Kind.CALL
        if (sight.block, sight.method) == ("pubsub", "publish"):
            return Kind.EVENT
    elif sight.seen is Seen.ARRIVED and sight.block == "pubsub":
        return Kind.DELIVERY
    return None


def resend(sight: Sight, to: str = "", headers: Sequence[tuple[str, str]] = ()) -> Resend | Skipped:
    """Make the request that does again what was seen, or say why there is none.

    Args:
        sight: A call, a publish, or an event that arrived.
        to: The app id of whom a call or an event that arrived goes to; "" = a call goes where it went.
        headers: Further ones, instead of those of the same name; an event has none.
    """
    kind = kind_of(sight)
    if kind is None:
        return Skipped(f"{sight.block}.{sight.method} is neither a call nor an event")
    if sight.hidden:
        return Skipped(f"its values are hidden: {sight.app} does not let them be told")
    request = sight.request
    if request is None or request.headers is None:
        return Skipped("its request was not recorded; mesh record does so, and mesh tap with --values")
    if request.cut:
        return Skipped(
            f"of its {request.size} bytes not all were recorded; --max-body of mesh record sets how many are"
        )
    if request.body is None and request.size:
        return Skipped("its body was streamed, which is not recorded")
    if kind is Kind.CALL:
        return _call(sight, request, to, headers)
    if kind is Kind.EVENT:
        return _event(sight, request)
    return _delivery(sight, request, to, headers) if to else Skipped("an event that arrived needs an application: --to")


def _call(sight: Sight, request: Content, to: str, given: Sequence[tuple[str, str]]) -> Resend | Skipped:
    verb, path = str(sight.details.get("verb", "POST")), str(sight.details.get("path", "/"))
    if media_type(request.content_type).startswith("application/grpc"):
        return Skipped("a call of gRPC cannot be sent over HTTP")
    if to and sight.target.startswith(OUTSIDE):
        return Skipped("it went to a service outside of the mesh, and not to an application")
    query = str(sight.details.get("query", ""))
    target = to or sight.target
    kept, withheld = _headers(request, given)
    trace = os.urandom(16).hex()
    return Resend(
        Kind.CALL,
        sight.source,
        target,
        f"{verb} {path}",
        verb,
        _method(target, f"{path}?{query}" if query else path),
        (*kept, (MARK, sight.id), _traceparent(trace)),
        request.body or b"",
        trace,
        withheld,
    )


def _delivery(sight: Sight, request: Content, to: str, given: Sequence[tuple[str, str]]) -> Resend:
    route = str(sight.details.get("route", "/"))
    kept, withheld = _headers(request, given)
    trace = os.urandom(16).hex()
    body = request.body or b""
    members = _cloud_event(request)
    if members is not None:  # It keeps its id: what the application answers is to be the same.
        members[MARK] = sight.id
        body = orjson.dumps(members)
    return Resend(
        Kind.DELIVERY,
        sight.source,
        to,
        f"POST {route}",
        "POST",
        _method(to, route),
        (*kept, (MARK, sight.id), _traceparent(trace)),
        body,
        trace,
        withheld,
    )


def _event(sight: Sight, request: Content) -> Resend:
    component, _, topic = sight.target.partition("/")
    trace = os.urandom(16).hex()
    path = f"/v1.0/publish/{quote(component, safe='')}/{quote(topic, safe='')}"
    members, body, content_type = _cloud_event(request), request.body or b"", request.content_type
    query = [f"metadata.partitionKey={quote(str(key), safe='')}"] if (key := sight.details.get("partitionKey")) else []
    if members is None:
        query.append("metadata.rawPayload=true")
    else:
        members = {name: value for name, value in members.items() if name not in _SET_AT_PUBLISH}
        members[MARK], members["id"] = str(members.get("id", sight.id)), new_id()
        body, content_type = orjson.dumps(members), CLOUDEVENTS_JSON
    return Resend(
        Kind.EVENT,
        sight.source,
        sight.target,
        "publish",
        "POST",
        f"{path}?{'&'.join(query)}" if query else path,
        (("content-type", content_type or "application/octet-stream"), _traceparent(trace)),
        body,
        trace,
    )


def _cloud_event(content: Content) -> dict[str, Any] | None:
    """Give the members of an event; None = it is a raw payload, or a batch."""
    if media_type(content.content_type) != CLOUDEVENTS_JSON:
        return None
    try:
        members = orjson.loads(content.body or b"")
    except orjson.JSONDecodeError:
        return None
    return members if isinstance(members, dict) else None


def _headers(content: Content, given: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Give those to send, and the names of those that are not told."""
    replaced = {name.lower() for name, _ in given}
    kept = [
        (name, value)
        for name, value in forwardable(content.headers or ())
        if name.lower() not in _NOT_SENT and name.lower() not in replaced
    ]
    if content.content_type and not any(name.lower() == "content-type" for name, _ in (*kept, *given)):
        kept.append(("content-type", content.content_type))
    withheld = tuple(name.lower() for name, value in kept if value == HIDDEN)
    return [*(each for each in kept if each[1] != HIDDEN), *given], withheld


def _method(app: str, path: str) -> str:
    return f"/v1.0/invoke/{quote(app, safe='')}/method{path if path.startswith('/') else '/' + path}"


def _traceparent(trace: str) -> tuple[str, str]:
    return "traceparent", f"00-{trace}-{os.urandom(8).hex()}-01"
