"""Actors over gRPC, but for the stream of their host (``gateway/routes/actor_stream.py``).

The data of a timer or reminder are any bytes, which become a text of JSON in base64: applications on HTTP get them so.

Source: Dapr 1.18, the actors API over gRPC.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, cast

import orjson

from gateway.errors import APIError, bad_request
from gateway.routes.failure_policy import policy_of
from gateway.routes.rpc import RPC, Called
from gateway.routes.state import told_expiry
from mesh.blocks.actors import (
    DELETE_REMINDER,
    DELETE_REMINDERS,
    DELETE_TIMER,
    GET_REMINDER,
    GET_STATE,
    INVOKE,
    LIST_REMINDERS,
    SET_REMINDER,
    SET_TIMER,
    TRANSACT,
    GetState,
    Invoke,
    Named,
    OfActor,
    Reminder,
    SetReminder,
    SetTimer,
    Transact,
)
from mesh.blocks.invocation import forwardable
from mesh.blocks.items import completed
from mesh.errors import StateError
from mesh.store import Item, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.actors.host import TurnAnswer

__all__ = ["RPCS"]


async def invoke(called: Called) -> object:
    """Call a method of an actor; an error of the actor's own is an answer."""
    asked = called.message
    headers = forwardable(asked.metadata.items())
    call = Invoke(asked.actor_id, asked.method, headers, asked.data)
    answer = cast("TurnAnswer", await called.run(INVOKE, asked.actor_type, call))
    return called.reply(data=answer.body)


async def get_state(called: Called) -> object:
    """Read a key of an actor."""
    asked = called.message
    stored = cast("Stored | None", await called.run(GET_STATE, asked.actor_type, GetState(asked.actor_id, asked.key)))
    return called.reply() if stored is None else called.reply(data=stored.value, metadata=told_expiry(stored))


async def transact(called: Called) -> object:
    """Write keys of an actor, all or none."""
    asked = called.message
    await called.run(TRANSACT, asked.actor_type, Transact(asked.actor_id, [_item(each) for each in asked.operations]))
    return called.reply()


def _item(operation: Any) -> Item:
    kind = operation.operationType
    if kind not in ("upsert", "delete"):
        text = f"operation type {kind} not supported"
        raise APIError(400, "ERR_NOT_SUPPORTED_STATE_OPERATION", text, grpc="UNIMPLEMENTED")
    if not operation.key:
        raise APIError(400, "ERR_MALFORMED_REQUEST", "state key cannot be empty")
    if kind == "delete":
        return Item(operation.key, None)
    try:
        return completed(Item(operation.key, operation.value.value, metadata=dict(operation.metadata)), {})
    except StateError as error:
        raise bad_request(error) from None


async def set_timer(called: Called) -> object:
    """Have a timer of an actor."""
    asked = called.message
    texts = asked.due_time, asked.period, asked.ttl, asked.callback
    await called.run(SET_TIMER, asked.actor_type, SetTimer(asked.actor_id, asked.name, *texts, _written(asked.data)))
    return called.reply()


async def delete_timer(called: Called) -> object:
    """Have a timer no more."""
    asked = called.message
    await called.run(DELETE_TIMER, asked.actor_type, Named(asked.actor_id, asked.name))
    return called.reply()


async def set_reminder(called: Called) -> object:
    """Have a reminder of an actor."""
    asked = called.message
    wanted = SetReminder(
        asked.actor_id,
        asked.name,
        asked.due_time,
        asked.period,
        asked.ttl,
        _written(asked.data),
        overwrite=asked.overwrite or not asked.HasField("overwrite"),
        policy=policy_of(asked),
    )
    await called.run(SET_REMINDER, asked.actor_type, wanted)
    return called.reply()


async def get_reminder(called: Called) -> object:
    """Tell of a reminder."""
    asked = called.message
    named = Named(asked.actor_id, asked.name)
    found = cast("Reminder", await called.run(GET_REMINDER, asked.actor_type, named))
    reply = called.reply()
    _tell(found, asked.actor_type, reply)
    return reply


async def list_reminders(called: Called) -> object:
    """Tell of the reminders of an actor, or of a type."""
    asked = called.message
    found = cast("Sequence[Reminder]", await called.run(LIST_REMINDERS, asked.actor_type, _of_actor(asked)))
    reply = called.reply()
    for each in found:
        named = reply.reminders.add(name=each.name)
        _tell(each, asked.actor_type, named.reminder)
    return reply


async def delete_reminder(called: Called) -> object:
    """Have a reminder no more."""
    asked = called.message
    await called.run(DELETE_REMINDER, asked.actor_type, Named(asked.actor_id, asked.name))
    return called.reply()


async def delete_reminders(called: Called) -> object:
    """Have the reminders of an actor, or of a type, no more."""
    asked = called.message
    await called.run(DELETE_REMINDERS, asked.actor_type, _of_actor(asked))
    return called.reply()


def _of_actor(asked: Any) -> OfActor:
    if asked.HasField("actor_id") and not asked.actor_id:  # Without one it is about the whole type.
        raise bad_request("actor_id is empty")
    return OfActor(asked.actor_id)


def _written(data: bytes) -> bytes:
    return orjson.dumps(base64.b64encode(data).decode()) if data else b""


def _tell(found: Reminder, type_: str, into: Any) -> None:
    from google.protobuf.wrappers_pb2 import BytesValue  # It is there: a message came.

    into.actor_type, into.actor_id = type_, found.id
    for name in ("due_time", "period", "ttl"):
        if text := getattr(found, name):
            setattr(into, name, text)
    if found.data:
        into.data.Pack(BytesValue(value=found.data))


RPCS = (
    RPC("InvokeActor", invoke, "actors"),
    RPC("GetActorState", get_state, "actors"),
    RPC("ExecuteActorStateTransaction", transact, "actors"),
    RPC("RegisterActorTimer", set_timer, "actors"),
    RPC("UnregisterActorTimer", delete_timer, "actors"),
    RPC("RegisterActorReminder", set_reminder, "actors"),
    RPC("GetActorReminder", get_reminder, "actors"),
    RPC("ListActorReminders", list_reminders, "actors"),
    RPC("UnregisterActorReminder", delete_reminder, "actors"),
    RPC("UnregisterActorRemindersByType", delete_reminders, "actors"),
)
