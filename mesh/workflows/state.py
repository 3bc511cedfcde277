"""The state of an instance: a value, of which every step makes a new one; what has happened is in its history."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import msgspec

from mesh.workflows.events import AnyEvent, Event, Failure, Parent
from mesh.workflows.messages import AnyMessage

__all__ = ["ENDED", "Awaited", "Sent", "State", "Status", "Step", "View"]


class Status(IntEnum):
    """The status of an instance, by the numbers of the workers' protocol (``OrchestrationStatus``)."""

    RUNNING = 0
    COMPLETED = 1
    CONTINUED_AS_NEW = 2
    FAILED = 3
    CANCELED = 4
    TERMINATED = 5
    PENDING = 6
    SUSPENDED = 7
    STALLED = 8


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELED, Status.TERMINATED})


class Awaited(msgspec.Struct, frozen=True, array_like=True):
    """An event that the code waits for.

    Attributes:
        name: Of the event; a long one is cut.
        count: How many waits have got none yet; below 0, how many came that no wait has got.
        since: Unix time in seconds.
    """

    name: str
    count: int
    since: float


class Sent(msgspec.Struct, frozen=True, array_like=True):
    """A message to another instance, until that has it.

    Attributes:
        number: Of it, among those of the execution.
        app: The application that the other one belongs to.
        instance: Its id.
        message: It.
    """

    number: int
    app: str
    instance: str
    message: AnyMessage


class State(msgspec.Struct, frozen=True, array_like=True):
    """The state of an instance.

    Attributes:
        generation: Rises with each continue-as-new, and when an id is used again: it begins with the milliseconds of
            Unix time at which the instance was started, or one more than that of the one before.
        execution: Id of the execution.
        status: `Status`.
        created: Unix time in seconds, as the others; of the instance, over its executions.
        updated: Of the last step.
        started: Of the first turn.
        ended: None while it has not.
        events: The length of the history.
        open_tasks: Activities without an outcome.
        open_children: Children likewise.
        due: When there is something to do without being told: a timer, a retry, a start that was put off.
        custom_status: What the code tells of itself.
        inbox: Accepted, and in no turn yet.
        outbox: For other instances, which may not have it yet.
        sent: The number of the last one that was put there.
        turns: How many turns the execution had.
        seen: What has been done in the executions before, with when: their ids, and the tokens of the events that were
            raised; for as long as somebody may still ask for it once more.
        awaited: The events that its code waits for since the last turn, as far as its worker says so.
    """

    generation: int
    execution: str
    name: str
    status: int
    created: float
    updated: float
    version: str | None = None
    started: float | None = None
    ended: float | None = None
    events: int = 0
    open_tasks: int = 0
    open_children: int = 0
    due: float | None = None
    custom_status: str | None = None
    parent: Parent | None = None
    inbox: tuple[AnyEvent, ...] = ()
    outbox: tuple[Sent, ...] = ()
    sent: int = 0
    turns: int = 0
    seen: tuple[tuple[float, str], ...] = ()
    awaited: tuple[Awaited, ...] = ()

    @property
    def wants_owner(self) -> bool:
        """Whether there is something to begin for it without being told, so that a new owner reads it at once."""
        return bool(
            self.ended is not None or self.open_tasks or self.inbox or self.outbox or self.status == Status.STALLED
        )


class Step(msgspec.Struct, frozen=True):
    """A step: a new state, and events that are new in the history.

    Attributes:
        state: What it is then.
        append: What its history gets; of a new ``generation``, that is all there is.
    """

    state: State
    append: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """An instance, as it is told of.

    Attributes:
        id: Its id.
        state: What it is.
        input: Its input; None where it was not asked for.
        output: What it gave, or what it was terminated with; likewise.
        failure: Why it failed.
        tags: That it was started with.
        scheduled: Before which it was not to begin.
        stalled: Why no worker can go on with it; None = one can, or it is not known.
    """

    id: str
    state: State
    input: str | None = None
    output: str | None = None
    failure: Failure | None = None
    tags: dict[str, str] | None = None
    scheduled: float | None = None
    stalled: str | None = None
