"""Actions: what the code of a workflow asks for in a turn, as a worker answers it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from mesh.workflows.events import EventRaised, Failure, Moment, Origin, Retry, Trace

__all__ = [
    "MAX_ACTIONS",
    "Action",
    "Answer",
    "Complete",
    "CreateChild",
    "CreateDetached",
    "CreateTimer",
    "ScheduleTask",
    "SendEvent",
    "TerminateInstance",
    "VersionMissing",
    "Wait",
]

MAX_ACTIONS = 100_000  # Of one answer.


class ScheduleTask(msgspec.Struct, frozen=True):
    """Run an activity; fields as in `mesh.workflows.events.TaskScheduled`, an empty ``execution_id`` is made."""

    id: int
    name: str
    input: str | None = None
    version: str | None = None
    execution_id: str = ""
    app: str | None = None
    retry: Retry | None = None
    propagation: int | None = None


class CreateTimer(msgspec.Struct, frozen=True):
    """Have a timer; fields as in `mesh.workflows.events.TimerCreated`."""

    id: int
    fire_at: Moment
    name: str | None = None
    origin: Origin | None = None


class CreateChild(msgspec.Struct, frozen=True):
    """Start a child; an empty ``instance`` is made of the parent's and the action's id."""

    id: int
    instance: str
    name: str
    input: str | None = None
    version: str | None = None
    app: str | None = None
    retry_of: str | None = None
    propagation: int | None = None


class SendEvent(msgspec.Struct, frozen=True):
    """Raise an event of another instance."""

    id: int
    instance: str
    name: str
    input: str | None = None
    app: str | None = None


class TerminateInstance(msgspec.Struct, frozen=True):
    """Terminate another instance."""

    id: int
    instance: str
    output: str | None = None
    recursive: bool = False
    app: str | None = None


class CreateDetached(msgspec.Struct, frozen=True):
    """Start an instance that tells nobody how it ends."""

    id: int
    instance: str
    name: str
    input: str | None = None
    version: str | None = None
    execution: str = ""
    scheduled: float | None = None
    trace: Trace | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    app: str | None = None


class Complete(msgspec.Struct, frozen=True):
    """End, or begin anew.

    Attributes:
        status: `mesh.workflows.state.Status`: COMPLETED, FAILED, TERMINATED, CANCELED, or CONTINUED_AS_NEW.
        result: The output; of what begins anew, its input.
        carryover: Events for what begins anew, that this execution did not use.
        version: Of what begins anew.
    """

    id: int
    status: int
    result: str | None = None
    failure: Failure | None = None
    carryover: tuple[EventRaised, ...] = ()
    version: str | None = None


class VersionMissing(msgspec.Struct, frozen=True):
    """The worker has the workflow, not in the version that this instance needs."""

    id: int


class Wait(msgspec.Struct, frozen=True):
    """The code waits for an event: it takes a number, and nothing is done."""

    id: int
    name: str


Action: TypeAlias = (
    ScheduleTask
    | CreateTimer
    | CreateChild
    | SendEvent
    | TerminateInstance
    | CreateDetached
    | Complete
    | VersionMissing
    | Wait
)


class Answer(msgspec.Struct, frozen=True):
    """The answer to a turn.

    Attributes:
        actions: In order.
        custom_status: What the code tells of itself; None = nothing new.
        version: Of the code that ran.
        patches: That it asked for, in order.
        waits: The names of the events that the code has waited for since it began, each as often; None = not known.
        whole: Whether the actions are all that the code has asked for since it began, and not only new ones.
    """

    actions: tuple[Action, ...] = ()
    custom_status: str | None = None
    version: str | None = None
    patches: tuple[str, ...] = ()
    whole: bool = False
    waits: tuple[str, ...] | None = None
