"""Actors: calls by type and id, their state, timers and reminders.

A call goes to whoever owns the partition of the actor's id (`mesh/ownership`), wherever that is; so do reminders. State
and timers are for the application beside this node, whose turn it is. What an owner does is in `mesh/actors`. The
target of each operation is the actor's type.

Source: Dapr 1.18, the actors API.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mesh.application import Headers
from mesh.blocks.job_record import DEFAULT_POLICY, Policed
from mesh.operation import Method
from mesh.policies import Verdict
from mesh.store import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.errors import MeshError
    from mesh.store import Item

__all__ = [
    "DEACTIVATE",
    "DELETE_REMINDER",
    "DELETE_REMINDERS",
    "DELETE_TIMER",
    "GET_REMINDER",
    "GET_STATE",
    "HOST",
    "INVOKE",
    "KIND",
    "LIST_REMINDERS",
    "LIST_TYPES",
    "SET_REMINDER",
    "SET_TIMER",
    "SHOW",
    "TRANSACT",
    "Deactivate",
    "GetState",
    "HostOf",
    "Invoke",
    "Look",
    "Named",
    "OfActor",
    "Reminder",
    "SetReminder",
    "SetTimer",
    "Shown",
    "Transact",
    "TypeView",
]

_REFUSED = frozenset({"ACTOR_TYPE_RESERVED", "BAD_ARGUMENT", "PERMISSION_DENIED"})
_STATUSES: Mapping[str, int] = {"DEADLINE_EXCEEDED": 4, "ACTOR_NO_HOST": 9}  # Of gRPC, where policies match these.
_UNAVAILABLE = 14
KIND = "actors."
"""What the kinds of owners of a type begin with."""


class Invoke(msgspec.Struct, frozen=True):
    """Call a method.

    Attributes:
        id: The actor's.
        method: Its name.
        headers: Forwardable ones.
        body: The bytes.
        query: Raw.
    """

    id: str
    method: str
    headers: Headers = ()
    body: bytes = b""
    query: str = ""


class GetState(msgspec.Struct, frozen=True):
    """Read a key of an actor."""

    id: str
    key: str


class Transact(msgspec.Struct, frozen=True):
    """Write keys of an actor, all or none; items have key, value (None deletes) and ttl."""

    id: str
    items: Sequence[Item]


class SetTimer(msgspec.Struct, frozen=True):
    """Have a timer, in place of one of its name.

    Attributes:
        id: The actor's.
        name: The timer's.
        due_time: When it fires first, as the application wrote it.
        period: How often then, likewise.
        ttl: Until when, likewise.
        callback: Told to the application.
        data: JSON; empty for none.
    """

    id: str
    name: str
    due_time: str = ""
    period: str = ""
    ttl: str = ""
    callback: str = ""
    data: bytes = b""


class SetReminder(msgspec.Struct, frozen=True):
    """Have a reminder.

    Attributes:
        id: The actor's.
        name: The reminder's.
        due_time: When it fires first, as the application wrote it.
        period: How often then, likewise.
        ttl: Until when, likewise.
        data: JSON; empty for none.
        overwrite: Whether it takes the place of one of its name.
        policy: What follows when the application fails.
    """

    id: str
    name: str
    due_time: str = ""
    period: str = ""
    ttl: str = ""
    data: bytes = b""
    overwrite: bool = True
    policy: Policed = DEFAULT_POLICY


class Named(msgspec.Struct, frozen=True):
    """A timer or reminder of an actor."""

    id: str
    name: str


class OfActor(msgspec.Struct, frozen=True):
    """The reminders of an actor; an empty id = of all actors of the type."""

    id: str = ""


class Reminder(msgspec.Struct, frozen=True):
    """A reminder as it is told of: its period as ``@every 10s``."""

    id: str
    name: str
    due_time: str
    period: str
    ttl: str
    data: bytes


class Deactivate(msgspec.Struct, frozen=True):
    """End the activation of an actor, wherever it is; gives whether it was active."""

    id: str


@dataclass(frozen=True, slots=True)
class HostOf:
    """A node that hosts a type.

    Attributes:
        node: Its id.
        app_id: The application.
        standing: ``ready``, ``waiting`` (its application is away), or ``leaving``.
        partitions: How many it owns.
        active: How many actors are active there; None = it did not say.
    """

    node: str
    app_id: str
    standing: str
    partitions: int
    active: int | None


@dataclass(frozen=True, slots=True)
class TypeView:
    """A type, who hosts it, and how many partitions nobody owns now."""

    type: str
    partitions: int
    unowned: int
    hosts: Sequence[HostOf]


@dataclass(frozen=True, slots=True)
class Look:
    """Look at an actor; with ``values`` at those of its state, not at the keys alone."""

    id: str
    values: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """An actor.

    Attributes:
        partition: That it is in.
        epoch: Of the partition; it rises whenever that changes hands.
        owner: Node and application that own it; None = nobody does now.
        state: Its keys, with values where they were asked for; at most 1000. None = the store does not list keys.
        reminders: What tells of each, by name.
    """

    partition: int
    epoch: int
    owner: tuple[str, str] | None
    state: Mapping[str, Stored | None] | None
    reminders: Mapping[str, Mapping[str, str]]


def _id(arguments: Invoke) -> str:
    return arguments.id


def _judge(_: object, __: object, error: MeshError | None) -> Verdict:
    """An application that fails, or cannot be called, does not work; one that refuses, or lacks a method, does."""
    if error is None:
        return Verdict(worked=True)
    status = getattr(error, "status", None)  # What the application answered.
    if status is None:
        worked, status = error.code in _REFUSED, _STATUSES.get(error.code, _UNAVAILABLE)
    else:
        worked = status < 500
    return Verdict(worked, error.retryable, status)


INVOKE = Method("actors", "invoke", Invoke, seconds=60.0, judge=_judge, grace=0.5, endpoint=_id)
GET_STATE = Method("actors", "get_state", GetState, Stored | None, guarded=False)
TRANSACT = Method("actors", "transact", Transact, guarded=False)
SET_TIMER = Method("actors", "set_timer", SetTimer, guarded=False)
DELETE_TIMER = Method("actors", "delete_timer", Named, guarded=False)
SET_REMINDER = Method("actors", "set_reminder", SetReminder, guarded=False)
GET_REMINDER = Method("actors", "get_reminder", Named, Reminder, guarded=False)
DELETE_REMINDER = Method("actors", "delete_reminder", Named, guarded=False)
LIST_REMINDERS = Method("actors", "list_reminders", OfActor, tuple[Reminder, ...], guarded=False)
DELETE_REMINDERS = Method("actors", "delete_reminders", OfActor, guarded=False)
DEACTIVATE = Method("actors", "deactivate", Deactivate, bool, guarded=False)
HOST = Method("actors", "host", object, seconds=float("inf"), guarded=False)  # A `StreamHost`.
LIST_TYPES = Method("actors", "list_types", str, tuple[TypeView, ...], guarded=False)
SHOW = Method("actors", "show", Look, Shown, guarded=False)
