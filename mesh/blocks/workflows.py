"""Workflows: instances by id, each of an application, whose workers run it; the mesh keeps what has happened to it.

What is asked of an instance goes to whoever owns its partition (`mesh/ownership`), wherever that is; what is only read
is read from the store. The engine of an owner is in `mesh/workflows`. The target of each operation is the application
that the instance belongs to.

Source: Dapr 1.18, the workflow API, and the worker protocol of its SDKs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from mesh.operation import Method
from mesh.workflows.events import Event, Trace
from mesh.workflows.messages import Told
from mesh.workflows.state import View

if TYPE_CHECKING:
    from mesh.workflows.waiting import Waiting

__all__ = [
    "GET",
    "HISTORY",
    "HOST",
    "LIST",
    "MAX_PAGE",
    "PURGE",
    "PURGE_MANY",
    "RAISE_EVENT",
    "RERUN",
    "RESUME",
    "SHOW",
    "START",
    "SUSPEND",
    "TERMINATE",
    "WAIT",
    "Get",
    "History",
    "HistoryPage",
    "List",
    "Page",
    "Purge",
    "PurgeMany",
    "RaiseEvent",
    "Rerun",
    "Resume",
    "Show",
    "Shown",
    "Start",
    "Suspend",
    "Terminate",
    "Wait",
]

MAX_PAGE = 1000
MANY_SECONDS = 60.0
FOREVER = float("inf")


class Start(msgspec.Struct, frozen=True):
    """Start an instance.

    Attributes:
        name: The workflow's.
        id: The instance's; empty for one that is made.
        input: Text, as a rule of JSON.
        version: Of the workflow; None = whatever the worker has.
        scheduled: Before which it is not to begin, Unix time in seconds.
        execution: Id of the execution; empty for one that is made.
        trace: The span that it belongs to; None = the operation's.
    """

    name: str
    id: str = ""
    input: str | None = None
    version: str | None = None
    scheduled: float | None = None
    execution: str = ""
    trace: Trace | None = None
    tags: dict[str, str] = {}


class RaiseEvent(msgspec.Struct, frozen=True):
    """Raise an event of an instance."""

    id: str
    name: str
    input: str | None = None


class Suspend(msgspec.Struct, frozen=True):
    """Have an instance begin no turn."""

    id: str
    reason: str | None = None


class Resume(msgspec.Struct, frozen=True):
    """Have an instance go on."""

    id: str
    reason: str | None = None


class Terminate(msgspec.Struct, frozen=True):
    """End an instance, and with ``recursive`` its children."""

    id: str
    output: str | None = None
    recursive: bool = False


class Purge(msgspec.Struct, frozen=True):
    """Forget an instance that has ended, or with ``force`` any; with ``recursive`` its children too."""

    id: str
    recursive: bool = False
    force: bool = False


class PurgeMany(msgspec.Struct, frozen=True):
    """Forget instances.

    Attributes:
        statuses: `mesh.workflows.state.Status`; empty = all that have ended.
        created_from: Unix time in seconds, as the others; None = no limit.
        created_to: Before it.
        ended_before: Before it.
        limit: The most to forget.
    """

    statuses: tuple[int, ...] = ()
    created_from: float | None = None
    created_to: float | None = None
    ended_before: float | None = None
    limit: int = MAX_PAGE
    recursive: bool = False
    force: bool = False


class Rerun(msgspec.Struct, frozen=True):
    """Run an instance again, from one of its events.

    Attributes:
        id: The instance, which has ended.
        event: The id of an event: an activity, a timer or a child that was asked for; None = the first one.
        new_id: Of what runs; empty for one that is made.
        input: In place of the activity's or the child's own, where ``overwrite`` says so.
        new_child_id: Of the child, where the event is one; None = one is made.
    """

    id: str
    event: int | None
    new_id: str = ""
    input: str | None = None
    overwrite: bool = False
    new_child_id: str | None = None


class Get(msgspec.Struct, frozen=True):
    """Look at an instance; ``texts`` with its input and output."""

    id: str
    texts: bool = True


class Wait(msgspec.Struct, frozen=True):
    """Look at an instance once it has begun, or ``ended``."""

    id: str
    ended: bool = True
    texts: bool = True


class List(msgspec.Struct, frozen=True):
    """Look at many, without their texts.

    Attributes:
        statuses: `mesh.workflows.state.Status`; empty = all.
        name: Of the workflow; empty = all.
        created_from: Unix time in seconds; None = no limit.
        after: What the page before has given; empty = the first one.
        limit: The most to give, up to ``MAX_PAGE``.
    """

    statuses: tuple[int, ...] = ()
    name: str = ""
    created_from: float | None = None
    after: str = ""
    limit: int = 100


class Page(msgspec.Struct, frozen=True):
    """Instances, in no order that means anything; ``after`` gives the next page, empty = there is none."""

    views: Sequence[View]
    after: str = ""


class History(msgspec.Struct, frozen=True):
    """Give the history of an instance, from an index on."""

    id: str
    after: int = 0
    limit: int | None = None


class HistoryPage(msgspec.Struct, frozen=True):
    """Events of an instance, as committed; ``total`` is how many there are."""

    view: View
    events: Sequence[Event]
    total: int


class Show(msgspec.Struct, frozen=True):
    """Look at an instance, and at what it waits for."""

    id: str


@dataclass(frozen=True, slots=True)
class Shown:
    """An instance.

    Attributes:
        view: It.
        partition: That it is in.
        owner: Node that owns it; None = nobody does now.
        waiting: What it waits for; None = its owner has not said it.
        workers: What is attached at the owner: by title, how many.
    """

    view: View
    partition: int
    owner: str | None
    waiting: Waiting | None = None
    workers: dict[str, int] | None = None


START = Method("workflows", "start", Start, str)
RAISE_EVENT = Method("workflows", "raise_event", RaiseEvent)
SUSPEND = Method("workflows", "suspend", Suspend)
RESUME = Method("workflows", "resume", Resume)
TERMINATE = Method("workflows", "terminate", Terminate)
PURGE = Method("workflows", "purge", Purge, Told, seconds=MANY_SECONDS)
PURGE_MANY = Method("workflows", "purge_many", PurgeMany, Told, seconds=MANY_SECONDS)
RERUN = Method("workflows", "rerun", Rerun, str, seconds=MANY_SECONDS)
GET = Method("workflows", "get", Get, View | None)
WAIT = Method("workflows", "wait", Wait, View, seconds=FOREVER)
LIST = Method("workflows", "list", List, Page, seconds=MANY_SECONDS)
HISTORY = Method("workflows", "history", History, HistoryPage, seconds=MANY_SECONDS)
SHOW = Method("workflows", "show", Show, Shown)
HOST = Method("workflows", "host", object, seconds=FOREVER, guarded=False)  # A `mesh.workflows.worker.Worker`.
