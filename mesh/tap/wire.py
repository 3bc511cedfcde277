"""Sights and what goes with them as CloudEvents in JSON: lines of the tap's HTTP route, and of a recording."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from mesh.errors import EventError
from mesh.tap.sight import Content, Dropped, Edge, Rates, Refused, Seen, Sight

__all__ = [
    "DROPPED",
    "RATES",
    "RECORDING",
    "REFUSED",
    "TYPE",
    "as_content",
    "as_event",
    "content_of",
    "edge_json",
    "sight_of",
]

TYPE = "mesh.tap."
DROPPED, RATES, REFUSED, RECORDING = (f"{TYPE}{each}" for each in ("dropped", "rates", "refused", "recording"))

_TEXTS = ("block", "method", "target", "app", "node", "outcome")
_WANTED: Mapping[Any, str] = {str: "text", int: "a whole number", (int, float): "a number", Mapping: "an object"}


def as_event(namespace: str, told: Sight | Dropped | Rates | Refused, at: float) -> dict[str, Any]:
    """Write it as a CloudEvent of the structured JSON format.

    Args:
        namespace: The mesh's, for ``source``.
        told: It.
        at: When it was told, Unix time in seconds; a sight has its own time.
    """
    source = f"/{namespace}/{told.app}/{told.node}"
    if isinstance(told, Sight):
        event = _event(told.id, source, f"{TYPE}{told.block}.{told.method}", told.time, _sight(told))
        event["subject"] = told.target
        if told.traceparent:
            event["traceparent"] = told.traceparent
        return event
    data: dict[str, Any] = {"app": told.app, "node": told.node}
    if isinstance(told, Dropped):
        kind, data["count"] = DROPPED, told.count
    elif isinstance(told, Refused):
        kind, data["reason"] = REFUSED, told.reason
    else:
        kind, data["seconds"] = RATES, told.seconds
        data["edges"] = [edge_json(each) for each in told.edges]
    return _event(f"{told.node}-{at:.6f}", source, kind, at, data)


def edge_json(edge: Edge) -> dict[str, Any]:
    """Write a line of the map as JSON has it."""
    return {
        "seen": edge.seen.value,
        "block": edge.block,
        "from": edge.source,
        "target": edge.target,
        "app": edge.app,
        "count": edge.count,
        "errors": edge.errors,
        "seconds": edge.seconds,
        "longest": edge.longest,
        "buckets": edge.buckets,
    }


def _event(id: str, source: str, kind: str, at: float, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": kind,
        "time": datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }


def _sight(told: Sight) -> dict[str, Any]:
    data: dict[str, Any] = {
        "seen": told.seen.value,
        "block": told.block,
        "method": told.method,
        "target": told.target,
        "from": told.source,
        "app": told.app,
        "node": told.node,
        "outcome": told.outcome,
        "seconds": told.seconds,
        "details": told.details,
    }
    if told.request is not None:
        data["request"] = as_content(told.request)
    if told.reply is not None:
        data["reply"] = as_content(told.reply)
    if told.hidden:
        data["hidden"] = True
    return data


def as_content(content: Content) -> dict[str, Any]:
    """Write a request or a reply; its body as ``json`` or as ``text`` where it is that, else as ``base64``.

    JSON that is written in another way than ours has both, so that a replay sends what was sent.
    """
    written: dict[str, Any] = {"size": content.size}
    if content.headers is not None:
        written["headers"] = [list(each) for each in content.headers]
    if content.content_type:
        written["contentType"] = content.content_type
    if content.cut:
        written["cut"] = True
    if content.body is None:
        return written
    if "json" in content.content_type and not content.cut:
        with suppress(orjson.JSONDecodeError, orjson.JSONEncodeError):  # What nests deeply is read, but not written.
            value = orjson.loads(content.body)
            again = orjson.dumps([[[[[[[[value]]]]]]]])[8:-8]  # It stands within as many at most, as in a replay.
            written["json"] = value
            if again == content.body:
                return written
    try:
        written["text"] = content.body.decode()
    except UnicodeDecodeError:
        written["base64"] = base64.b64encode(content.body).decode()
    return written


def sight_of(event: Mapping[str, Any]) -> Sight | None:
    """Read a sight back from a CloudEvent; None = it is of another of the tap's types.

    Raises:
        EventError: It is none of these; the text names the field.
    """
    kind = event.get("type")
    if not isinstance(kind, str) or not kind.startswith(TYPE):
        raise EventError(f"type: {kind!r} is not what a tap tells, which begins with {TYPE}")
    if kind in (DROPPED, RATES, REFUSED, RECORDING):
        return None
    data = event.get("data")
    if not isinstance(data, Mapping):
        raise EventError("data: an object is wanted")
    texts = {name: _member(data, name, str) for name in _TEXTS}
    try:
        time = datetime.datetime.fromisoformat(_member(event, "time", str, "")).timestamp()
    except ValueError as error:
        raise EventError(f"time: {error}") from None
    try:
        seen = Seen(_member(data, "seen", str))
    except ValueError:
        raise EventError(f"data.seen: {data['seen']!r} is none of {', '.join(Seen)}") from None
    return Sight(
        id=_member(event, "id", str, ""),
        time=time,
        seconds=float(_member(data, "seconds", (int, float))),
        seen=seen,
        source=_member(data, "from", str),
        traceparent=_member(event, "traceparent", str, "", default=""),
        details=dict(_member(data, "details", Mapping, default={})),
        request=content_of(data.get("request"), "data.request"),
        reply=content_of(data.get("reply"), "data.reply"),
        hidden=data.get("hidden") is True,
        **texts,
    )


def _member(of: Mapping[str, Any], name: str, kind: Any, where: str = "data.", default: Any = None) -> Any:
    """Give a member that is of a kind; raises ``EventError``."""
    value = of.get(name, default)
    if value is None:
        raise EventError(f"{where}{name}: is missing")
    if not isinstance(value, kind):
        raise EventError(f"{where}{name}: {_WANTED[kind]} is wanted, not {value!r:.60}")
    return value


def content_of(written: object, where: str) -> Content | None:
    """Read a request or a reply back; raises ``EventError``."""
    if written is None:
        return None
    if not isinstance(written, Mapping):
        raise EventError(f"{where}: an object is wanted")
    body: bytes | None = None
    if "text" in written:
        body = _member(written, "text", str, f"{where}.").encode()
    elif "json" in written:
        body = orjson.dumps(written["json"])
    elif "base64" in written:
        try:
            body = base64.b64decode(written["base64"], validate=True)
        except (TypeError, ValueError) as error:
            raise EventError(f"{where}.base64: {error}") from None
    headers = written.get("headers")
    if headers is not None and not (
        isinstance(headers, list) and all(isinstance(each, list) and len(each) == 2 for each in headers)
    ):
        raise EventError(f"{where}.headers: a list of pairs, of a name and a value, is wanted")
    return Content(
        None if headers is None else tuple((str(name), str(value)) for name, value in headers),
        _member(written, "contentType", str, f"{where}.", default=""),
        _member(written, "size", int, f"{where}.", default=-1),
        body,
        written.get("cut") is True,
    )
