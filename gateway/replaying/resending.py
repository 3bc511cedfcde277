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

from mesh.blocks.envelope import OVERRIDE
from mesh.blocks.invocation import OUTSIDE, forwardable
from mesh.event import CLOUDEVENTS_JSON, media_type, new_id
from mesh.fields import BREAKS_OFF, TOKEN
from mesh.passing import REPLAYED
from mesh.tap.content import HIDDEN
from mesh.tap.sight import Content, Seen, Sight

__all__ = ["MARK", "Kind", "Resend", "Skipped", "kind_of", "resend"]

MARK = REPLAYED
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


_ASKED = {
    ("invocation", "invoke"): Kind.CALL,
    ("durable", "accept"): Kind.CALL,
    ("pubsub", "publish"): Kind.EVENT,
    ("pubsub", "bulk_publish"): Kind.EVENT,
}
_NOT_SENT_AGAIN = {
    "accept": "it is a durable call, whose answer comes later",
    "bulk_publish": "several events were published at once, which cannot be marked as replayed",
}


@dataclass(frozen=True, slots=True)
class Resend:
    """A request to a gateway.

    Attributes:
        kind: What it does again.
        source: The app id of who asked then, or whose gateway handed an event over, and is to be asked now; "" = it
            is not known.
        target: Whom it goes to now: an app id, of an event ``component/topic``.
        title: What is asked, in a few words: verb and path, or the route of an event.
        verb: HTTP method.
        path: On the gateway, with its query; what must be quoted is.
        headers: To send.
        body: To send.
        trace: The id of the trace that it begins.
        withheld: The names of headers, and behind a ``?`` of parameters, that it lacks: their values are never told.
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
        return _ASKED.get((sight.block, sight.method))
    if sight.seen is Seen.ARRIVED and sight.block == "pubsub":
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
    if (reason := _NOT_SENT_AGAIN.get(sight.method)) is not None:
        return Skipped(reason)
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
        made = _call(sight, request, to, headers)
    elif kind is Kind.EVENT:
        made = _event(sight, request)
    elif not to:
        return Skipped("an event that arrived needs an application: --to")
    else:
        made = _delivery(sight, request, to, headers)
    return made if isinstance(made, Skipped) else _sendable(made)


def _sendable(made: Resend) -> Resend | Skipped:
    """Refuse what no message can hold: a recording may have been written by anybody."""
    if TOKEN.fullmatch(made.verb) is None or BREAKS_OFF.search(made.path):
        return Skipped("its verb or path is none that HTTP has")
    for name, value in made.headers:
        if TOKEN.fullmatch(name) is None or BREAKS_OFF.search(value):
            return Skipped(f"its header {name[:100]!r} is none that HTTP has")
    return made


def _call(sight: Sight, request: Content, to: str, given: Sequence[tuple[str, str]]) -> Resend | Skipped:
    verb, path = str(sight.details.get("verb", "POST")), str(sight.details.get("path", "/"))
    if sight.details.get("grpc"):
        return Skipped("a call of gRPC cannot be sent over HTTP")
    if to and sight.target.startswith(OUTSIDE):
        return Skipped("it went to a service outside of the mesh, and not to an application")
    query = str(sight.details.get("query", ""))
    kept = "&".join(each for each in query.split("&") if each.partition("=")[2] != HIDDEN)
    headers, withheld = _headers(request, given)
    hidden = tuple(f"?{each.partition('=')[0]}" for each in query.split("&") if each.partition("=")[2] == HIDDEN)
    target, trace = to or sight.target, os.urandom(16).hex()
    return Resend(
        Kind.CALL,
        sight.source,
        target,
        f"{verb} {path}",
        verb,
        _method(target, f"{path}?{kept}" if kept else path),
        (*headers, (MARK, sight.id), _traceparent(trace)),
        request.body or b"",
        trace,
        withheld + hidden,
    )


def _delivery(sight: Sight, request: Content, to: str, given: Sequence[tuple[str, str]]) -> Resend | Skipped:
    if sight.details.get("bulk"):
        return Skipped("it was handed over in a batch, which is not replayed")
    route = sight.details.get("route")
    if not route:
        return Skipped("it was not handed over to the application")
    headers, withheld = _headers(request, given)
    trace, body = os.urandom(16).hex(), request.body or b""
    members = _cloud_event(request)
    if members is not None:  # It keeps its id: what the application answers is to be the same.
        body = orjson.dumps({**members, MARK: sight.id})
    return Resend(
        Kind.DELIVERY,
        sight.app,
        to,
        f"POST {route}",
        "POST",
        _method(to, str(route)),
        (*headers, (MARK, sight.id), _traceparent(trace)),
        body,
        trace,
        withheld,
    )


def _event(sight: Sight, request: Content) -> Resend:
    component, _, topic = sight.target.partition("/")
    path = f"/v1.0/publish/{quote(component, safe='')}/{quote(topic, safe='')}"
    trace, body, content_type = os.urandom(16).hex(), request.body or b"", request.content_type
    members = _cloud_event(request)
    if members is not None:
        members = {name: value for name, value in members.items() if name not in _SET_AT_PUBLISH}
        members[MARK], members["id"] = str(members.get("id", sight.id)), new_id()
        body, content_type = orjson.dumps(members), CLOUDEVENTS_JSON
    # What was asked of the publish stands where a request has its fields; attributes are in the event already.
    asked = [(name, value) for name, value in request.headers or () if not name.lower().startswith(OVERRIDE)]
    told = [(name, value) for name, value in asked if value != HIDDEN]
    query = "&".join(f"metadata.{quote(name, safe='')}={quote(value, safe='')}" for name, value in told)
    return Resend(
        Kind.EVENT,
        sight.source,
        sight.target,
        "publish",
        "POST",
        f"{path}?{query}" if query else path,
        (("content-type", content_type or "application/octet-stream"), _traceparent(trace)),
        body,
        trace,
        tuple(f"?metadata.{name}" for name, value in asked if value == HIDDEN),
    )


def _cloud_event(content: Content) -> dict[str, Any] | None:
    """Give the members of an event; None = it is a raw payload."""
    if media_type(content.content_type) != CLOUDEVENTS_JSON:
        return None
    try:
        members = orjson.loads(content.body or b"")
    except orjson.JSONDecodeError:
        return None
    return members if isinstance(members, dict) and "specversion" in members else None


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
