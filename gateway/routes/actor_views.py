"""``mesh/actors`` and ``mesh/reminders``: what ``mesh actors`` shows, and how it ends an activation."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, cast

import orjson

from gateway.errors import bad_request
from gateway.http.response import Answered, json_response
from gateway.routes.request import query_of
from gateway.routes.route import Asked, Route
from mesh.blocks.actors import (
    DEACTIVATE,
    LIST_REMINDERS,
    LIST_TYPES,
    SHOW,
    Deactivate,
    Look,
    OfActor,
    Reminder,
    Shown,
    TypeView,
)
from mesh.part import whole
from mesh.store import Stored
from mesh.values import parse_whole

__all__ = ["ROUTES"]

MAX_LISTED = 1000


async def types(asked: Asked) -> Answered:
    """Tell of all types that are hosted on the mesh."""
    found = cast("Sequence[TypeView]", await asked.run(LIST_TYPES, "", ""))
    return json_response([_type(each) for each in found])


def _type(view: TypeView) -> dict[str, object]:
    hosts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for each in view.hosts:  # Processes of one gateway are one host.
        key = whole(each.node), each.app_id, each.standing
        host = hosts.setdefault(key, dict(zip(("node", "appID", "standing"), key, strict=True)))
        host["partitions"] = host.get("partitions", 0) + each.partitions
        known = [count for count in (host.get("active"), each.active) if count is not None]
        host["active"] = sum(known) if known else None
    return {"type": view.type, "partitions": view.partitions, "unowned": view.unowned, "hosts": list(hosts.values())}


async def show(asked: Asked) -> Answered:
    """Tell of an actor that this gateway's application hosts, or another instance of it does."""
    type_, id_ = asked.text(0), asked.text(1)
    values = asked.api.values and query_of(asked.query).get("values") == "true"
    found = cast("Shown", await asked.run(SHOW, type_, Look(id_, values)))
    told: dict[str, object] = {"type": type_, "id": id_, "partition": found.partition, "epoch": found.epoch}
    told |= dict(zip(("node", "appID"), found.owner or (None, None), strict=True))
    told["state"] = None if found.state is None else _state(found.state, values=values)
    return json_response({**told, "reminders": found.reminders})


def _state(state: Mapping[str, Stored | None], *, values: bool) -> object:
    if not values:
        return list(state)
    return {key: _value(stored.value) for key, stored in state.items() if stored is not None}


def _value(value: bytes) -> object:
    """Give JSON as it is; what is none was written over gRPC."""
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return {"base64": base64.b64encode(value).decode()}
    return orjson.Fragment(value)


async def deactivate(asked: Asked) -> Answered:
    """End the activation of an actor, wherever it is."""
    return json_response({"active": await asked.run(DEACTIVATE, asked.text(0), Deactivate(asked.text(1)))})


async def reminders(asked: Asked) -> Answered:
    """List the reminders of a type that this gateway's application hosts, or of one actor of it: a page of them."""
    query = query_of(asked.query)
    try:
        limit = parse_whole(query.get("limit", "100"), least=1, most=MAX_LISTED)
        offset = parse_whole(query.get("offset", "0"), least=0)
    except ValueError as error:
        raise bad_request(f"limit or offset is {error}") from None
    found = cast("Sequence[Reminder]", await asked.run(LIST_REMINDERS, asked.text(0), OfActor(query.get("id", ""))))
    told = [
        {"id": each.id, "name": each.name, "dueTime": each.due_time, "period": each.period, "ttl": each.ttl}
        for each in sorted(found, key=attrgetter("id", "name"))[offset : offset + limit]
    ]
    return json_response({"reminders": told, "total": len(found)})


ROUTES = (
    Route("mesh/actors", types, frozenset({"GET"}), api="actors"),
    Route("mesh/actors/{type}/{id}", show, frozenset({"GET"}), api="actors"),
    Route("mesh/reminders/{type}", reminders, frozenset({"GET"}), api="actors"),
    Route("mesh/actors/{type}/{id}", deactivate, frozenset({"DELETE"}), api="actors"),
)
