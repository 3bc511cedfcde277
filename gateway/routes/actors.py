"""``actors``: calls, state, timers and reminders of actors."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import orjson

from gateway.errors import APIError, bad_request, malformed
from gateway.http.response import Answered, Response, json_response, no_content, passed_on
from gateway.routes.failure_policy import read_policy
from gateway.routes.request import deadline_of, fields, members, raw_member, read_body, read_json, text_map
from gateway.routes.route import WRITE, Asked, Route
from mesh.actors.host import TurnAnswer
from mesh.blocks.actors import (
    DELETE_REMINDER,
    DELETE_TIMER,
    GET_REMINDER,
    GET_STATE,
    INVOKE,
    SET_REMINDER,
    SET_TIMER,
    TRANSACT,
    GetState,
    Invoke,
    Named,
    Reminder,
    SetReminder,
    SetTimer,
    Transact,
)
from mesh.blocks.invocation import forwardable
from mesh.blocks.items import completed
from mesh.errors import StateError
from mesh.event import MAX_LEVELS
from mesh.store import Item, Stored

__all__ = ["ROUTES"]

GET, DELETE = frozenset({"GET"}), frozenset({"DELETE"})
METHODS = frozenset({"GET", "POST", "PUT", "DELETE"})


async def invoke(asked: Asked) -> Answered:
    """Call a method of an actor, wherever that is."""
    type_, id_, method = asked.text(0), asked.text(1), asked.text(2)
    headers = forwardable(asked.request.headers.items())
    if asked.api.config.tokens.guarded:  # This gateway's own token is kept from the actor's application.
        headers = [(name, value) for name, value in headers if name.lower() != "dapr-api-token"]
    call = Invoke(id_, method, headers, await read_body(asked.request), asked.query)
    answer = cast("TurnAnswer", await asked.run(INVOKE, type_, call, deadline_of(asked.request)))
    return Response(answer.status, answer.body, passed_on(answer.headers))


async def get_state(asked: Asked) -> Answered:
    """Read a key of an actor."""
    wanted = GetState(asked.text(1), asked.text(2))
    stored = cast("Stored | None", await asked.run(GET_STATE, asked.text(0), wanted))
    if stored is None:
        return no_content()
    told = [("Content-Type", "application/json")]
    if stored.expires_at is not None:
        expires = datetime.fromtimestamp(stored.expires_at, UTC).isoformat(timespec="milliseconds")
        told.append(("metadata.ttlExpireTime", expires.replace("+00:00", "Z")))
    return Response(200, orjson.dumps(stored.value.decode()) if stored.bare else stored.value, told)


async def transact(asked: Asked) -> Answered:
    """Write keys of an actor, all or none."""
    type_, id_ = asked.text(0), asked.text(1)
    body = await read_json(asked.request)
    if not isinstance(body, list):
        raise malformed("the body must be an array of operations")
    await asked.run(TRANSACT, type_, Transact(id_, [_item(each) for each in body]))
    return no_content()


def _item(operation: object) -> Item:
    given = fields(operation, "an operation")
    kind = given.get("operation")
    if kind not in ("upsert", "delete"):
        raise APIError(400, "ERR_NOT_SUPPORTED_STATE_OPERATION", f"operation type {kind} not supported")
    request = fields(given.get("request"), "request")
    key = request.get("key")
    if not isinstance(key, str) or not key:
        raise malformed("'key' is required and must be a string that is not empty")
    if kind == "delete":
        return Item(key, None)
    item = Item(key, _json(request.get("value"), f"'value' of key {key}"))
    metadata = text_map(request.get("metadata"), f"'metadata' of key {key}")
    try:
        return completed(Item(key, item.value, metadata=dict(metadata)), {})
    except StateError as error:
        raise bad_request(error) from None


async def set_timer(asked: Asked) -> Answered:
    """Have a timer of an actor."""
    type_, id_, name = asked.text(0), asked.text(1), asked.text(2)
    body, data = await _members(asked)
    texts = _text(body, "dueTime"), _text(body, "period"), _text(body, "ttl"), _text(body, "callback")
    await asked.run(SET_TIMER, type_, SetTimer(id_, name, *texts, data))
    return no_content()


async def delete_timer(asked: Asked) -> Answered:
    """Have a timer no more."""
    await asked.run(DELETE_TIMER, asked.text(0), Named(asked.text(1), asked.text(2)))
    return no_content()


async def set_reminder(asked: Asked) -> Answered:
    """Have a reminder of an actor."""
    type_, id_, name = asked.text(0), asked.text(1), asked.text(2)
    body, data = await _members(asked)
    overwrite = body.get("overwrite")
    if overwrite is not None and not isinstance(overwrite, bool):
        raise malformed("overwrite must be true or false")
    wanted = SetReminder(
        id_,
        name,
        _text(body, "dueTime"),
        _text(body, "period"),
        _text(body, "ttl"),
        data,
        overwrite=overwrite is not False,
        policy=read_policy(body.get("failurepolicy")),
    )
    await asked.run(SET_REMINDER, type_, wanted)
    return no_content()


async def get_reminder(asked: Asked) -> Answered:
    """Tell of a reminder."""
    type_ = asked.text(0)
    found = cast("Reminder", await asked.run(GET_REMINDER, type_, Named(asked.text(1), asked.text(2))))
    told: dict[str, object] = {"actorID": found.id, "actorType": type_}
    if found.data:
        told["data"] = orjson.Fragment(found.data)
    told |= {"dueTime": found.due_time, "period": found.period}
    if found.ttl:
        told["ttl"] = found.ttl
    return json_response(told)


async def delete_reminder(asked: Asked) -> Answered:
    """Have a reminder no more."""
    await asked.run(DELETE_REMINDER, asked.text(0), Named(asked.text(1), asked.text(2)))
    return no_content()


async def _members(asked: Asked) -> tuple[Mapping[str, object], bytes]:
    """Read the body's members, and the data among them as they are written; empty for none."""
    body = await read_json(asked.request)
    given = members({} if body is None else body, "the body")
    if "data" not in given:
        return given, b""
    _json(given["data"], "data")  # They may go into other JSON, which is nested no deeper.
    return given, raw_member(await read_body(asked.request), "data") or b""


def _text(given: Mapping[str, object], name: str) -> str:
    value = given.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(f"{name} must be a string")
    return value


def _json(value: object, what: str) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        raise malformed(f"{what} is nested more than {MAX_LEVELS} levels") from None


_ACTOR = "actors/{type}/{id}"

ROUTES = (
    Route(f"{_ACTOR}/method/{{method}}", invoke, METHODS),
    Route(f"{_ACTOR}/state", transact, WRITE),
    Route(f"{_ACTOR}/state/{{key}}", get_state, GET),
    Route(f"{_ACTOR}/timers/{{name}}", set_timer, WRITE),
    Route(f"{_ACTOR}/timers/{{name}}", delete_timer, DELETE),
    Route(f"{_ACTOR}/reminders/{{name}}", set_reminder, WRITE),
    Route(f"{_ACTOR}/reminders/{{name}}", get_reminder, GET),
    Route(f"{_ACTOR}/reminders/{{name}}", delete_reminder, DELETE),
)
