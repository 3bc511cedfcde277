"""What a span of an API call is called, and what it tells of the building block: one table by the API's own names.

The names are the reference's, so that what was built on its traces finds them again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from mesh.spans import Value

__all__ = ["failure", "header_tags", "of_http", "of_proxied", "of_rpc"]

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_ACTOR = re.compile(r"/v1\.0/actors/([^/]+)/([^/]+)/(method|state|timers|reminders)(?:/([^/]*))?\Z")
MAX_TAGS = 32
MAX_TAG = 256
_NOT_TOLD = frozenset({"dapr-api-token", "dapr-app-token"})

Tags = dict[str, Value]


def failure(status: int) -> str:
    """Say that an answer of HTTP is a failure, to who called; empty when it is none."""
    return f"Code({status}): {_REASONS.get(status, '')}".rstrip() if status >= 400 else ""


def header_tags(fields: Iterable[tuple[str, str]]) -> Tags:
    """Give the header fields that callers want to find again: those that begin with ``dapr-``, but no token."""
    found: Tags = {}
    for name, value in fields:
        lowered = name.lower()
        if (
            lowered.startswith("dapr-")
            and lowered not in _NOT_TOLD
            and "token" not in lowered
            and len(found) < MAX_TAGS
        ):
            found[lowered] = value[:MAX_TAG].encode("utf-8", "replace").decode()
    return found


def _of_component(block: str, component: str, statement: str) -> Tags:
    return {"db.system": block, "db.connection_string": block, "db.name": component, "db.statement": statement}


def _of_topic(block: str, component: str, statement: str) -> Tags:
    return {"messaging.system": "pubsub"}


_TAGS: Mapping[str, Callable[[str, str, str], Tags]] = {
    "state": _of_component,
    "secrets": _of_component,
    "bindings": _of_component,
    "publish": _of_topic,
}


def _called(app_id: str, method: str) -> tuple[str, Tags]:
    return f"CallLocal/{app_id}/{method}", {"net.peer.name": app_id, "rpc.service": "ServiceInvocation"}


def _of_actor(path: str, type_: str, id_: str, what: str, method: str) -> tuple[str, Tags]:
    tags: Tags = {"dapr.actor": f"{type_}.{id_}"}
    if what == "state":
        tags["db.name"] = "actor"
    return f"CallActor/{type_}/{method}" if what == "method" else path, tags


def of_http(verb: str, path: str, target: str | None) -> tuple[str, Tags]:
    """Give name and tags of a call of the HTTP API.

    Args:
        verb: Its method.
        path: As it was written, without the query.
        target: The application that a header names.
    """
    if target:
        return _called(target, path.lstrip("/"))
    if (actor := _ACTOR.match(path)) is not None:
        return _of_actor(path, *map(unquote, actor.groups("")))
    parts = path.split("/", 4)
    if len(parts) > 4 and parts[2] == "invoke" and (method := _method(parts)) is not None:
        return _called(unquote(parts[3]), method)
    make = _TAGS.get(parts[2]) if len(parts) > 3 else None
    return path, {} if make is None else make(parts[2], unquote(parts[3]), f"{verb} {path}")


def _method(parts: Sequence[str]) -> str | None:
    begin, _, method = parts[4].partition("/")
    return method if begin == "method" else None


def of_proxied(target: str, path: str) -> tuple[str, Tags]:
    """Give name and tags of a call of an application's own gRPC service."""
    return _called(target, path.lstrip("/"))


def of_rpc(path: str, block: str, message: Any) -> tuple[str, Tags]:
    """Give name and tags of a call of the gRPC API, once its message is read.

    Args:
        path: The method's.
        block: As ``spec.api`` of a Configuration calls it.
        message: What was sent; None where the client streams.
    """
    if message is None:
        return path, {}
    if block == "actors":
        return path, {"dapr.actor": f"{message.actor_type}.{message.actor_id}"}
    if block == "invoke":
        return _called(message.id, message.message.method.partition("?")[0].lstrip("/"))
    make = _TAGS.get(block)
    if make is None:
        return path, {}
    component = getattr(message, "store_name", "") or getattr(message, "name", "")
    return path, make(block, component, path)
