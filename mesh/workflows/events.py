"""Events: what happens to an instance, in its history and its inbox.

They are stored as they are (MessagePack arrays that begin with the tag), so fields are only ever added at the end of a
class, with a default. A tag is the number of the event in ``HistoryEvent`` of the workers' protocol where it has one
there. A text of an application (``input``, ``result``…) is its JSON as it was written, which nothing here reads; None
is no text, which is not the same as an empty one.

Source: the messages of Dapr's worker protocol (``gateway/grpc/proto/taskhub.proto``).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = [
    "FOREVER",
    "MAX_CAUSES",
    "Ancestor",
    "AnyEvent",
    "ChildCompleted",
    "ChildCreated",
    "ChildFailed",
    "Completed",
    "DetachedCreated",
    "Event",
    "EventRaised",
    "EventSent",
    "Failure",
    "Inherited",
    "Moment",
    "Origin",
    "Parent",
    "PlainEvent",
    "Resumed",
    "Retry",
    "Retrying",
    "Stalled",
    "Started",
    "Suspended",
    "TaskCompleted",
    "TaskFailed",
    "TaskScheduled",
    "Terminated",
    "TimerCreated",
    "TimerFired",
    "Trace",
    "TurnStarted",
    "bounded",
    "seconds",
]

FOREVER = 253402300799
"""The second of Unix time from which on a timer never fires: workers write the end of the year 9999 for "no limit"."""

MAX_CAUSES = 32
"""Of one failure, with itself: protobuf reads messages that are nested up to 100 times, and JSON's writer 254."""

Moment: TypeAlias = tuple[int, int]
"""Unix time: seconds, and nanoseconds beyond them. Workers compare what they read with what they wrote, to the last."""


def seconds(moment: Moment) -> float:
    """Give a moment as Unix time in seconds."""
    return moment[0] + moment[1] / 1e9


class _Value(msgspec.Struct, frozen=True, array_like=True):
    pass


class Failure(_Value, frozen=True, array_like=True):
    """Why something failed.

    Attributes:
        type: Of the error, as the application calls it.
        message: For people.
        stack: Where it happened.
        inner: What caused it.
        final: Whether no retry can mend it.
    """

    type: str
    message: str
    stack: str | None = None
    inner: Failure | None = None
    final: bool = False


def bounded(failure: Failure) -> Failure:
    """Give a failure with no more causes than messages may be nested for those who are told of it."""
    chain = [failure]
    while chain[-1].inner is not None:
        if len(chain) == MAX_CAUSES:
            inner = None
            for each in reversed(chain):
                inner = msgspec.structs.replace(each, inner=inner)
            assert inner is not None
            return inner
        chain.append(chain[-1].inner)
    return failure


class Trace(_Value, frozen=True, array_like=True):
    """The span that something belongs to: W3C ``traceparent`` and ``tracestate``."""

    parent: str
    state: str = ""


class Parent(_Value, frozen=True, array_like=True):
    """Who wants the outcome of a child: the instance, and the id of its event `ChildCreated`."""

    app: str
    instance: str
    task: int
    name: str = ""
    execution: str = ""


class Origin(_Value, frozen=True, array_like=True):
    """Why a timer is there: 1 the code made it, 2 waits for an event, 3 retries an activity, 4 retries a child.

    Attributes:
        kind: That number.
        text: The event's name, the activity's execution id, or the child's instance id.
    """

    kind: int
    text: str = ""


class Retry(_Value, frozen=True, array_like=True):
    """How often the engine itself tries an activity, for workers that cannot.

    Attributes:
        attempts: The most in all, at least 1.
        first: Seconds before the second attempt.
        factor: What each pause is longer than the one before.
        longest: The longest pause in seconds; None = no limit.
        within: Seconds since it was scheduled, beyond which no attempt begins; None = no limit.
        never: Types of errors that are not tried again.
    """

    attempts: int
    first: float = 1.0
    factor: float = 1.0
    longest: float | None = None
    within: float | None = None
    never: tuple[str, ...] = ()


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something that happened.

    Attributes:
        at: Unix time in seconds.
    """

    at: float


class Started(Event, frozen=True, array_like=True, tag=3):
    """The execution began, or is to begin.

    Attributes:
        name: The workflow's.
        execution: Id of the execution; each continue-as-new is a new one.
        app: The application that the instance belongs to.
        caller: The application that has started it, where that is another one; else empty.
        scheduled: Before which it is not to begin, Unix time in seconds.
        rerun_of: The instance that it is run again from.
    """

    name: str
    execution: str
    app: str
    version: str | None = None
    input: str | None = None
    caller: str = ""
    parent: Parent | None = None
    scheduled: float | None = None
    trace: Trace | None = None
    tags: dict[str, str] = {}
    rerun_of: str | None = None


class Completed(Event, frozen=True, array_like=True, tag=4):
    """It ended; ``status`` is one of `mesh.workflows.state.Status`."""

    id: int
    status: int
    result: str | None = None
    failure: Failure | None = None


class Terminated(Event, frozen=True, array_like=True, tag=5):
    """It is to end now, with this output; ``recursive`` its open children too."""

    output: str | None = None
    recursive: bool = False


class TaskScheduled(Event, frozen=True, array_like=True, tag=6):
    """An activity was asked for.

    One whose name begins with ``mesh.`` is an operation of the mesh (``mesh/workflows/operations.py``).

    Attributes:
        id: Number of the action; what comes of it names it.
        execution_id: The same for all attempts, by this engine or the worker: an application's key against doing
            something twice.
        app: Whose worker it is for; None = the instance's own.
        retry: What the engine itself does when it fails; None = nothing.
        rerun_of: The instance that it is run again from.
        propagation: What of the history goes along, by the protocol's number: see `mesh.workflows.propagation`.
    """

    id: int
    name: str
    execution_id: str
    input: str | None = None
    version: str | None = None
    app: str | None = None
    retry: Retry | None = None
    trace: Trace | None = None
    rerun_of: str | None = None
    propagation: int | None = None


class TaskCompleted(Event, frozen=True, array_like=True, tag=7):
    """An activity gave its result."""

    task: int
    execution_id: str
    result: str | None = None


class TaskFailed(Event, frozen=True, array_like=True, tag=8):
    """An activity failed for good, as far as the engine can tell."""

    task: int
    execution_id: str
    failure: Failure


class ChildCreated(Event, frozen=True, array_like=True, tag=9):
    """A child workflow was asked for, of another application where ``app`` names one."""

    id: int
    instance: str
    name: str
    version: str | None = None
    input: str | None = None
    app: str | None = None
    trace: Trace | None = None
    rerun_of: str | None = None
    retry_of: str | None = None
    propagation: int | None = None


class ChildCompleted(Event, frozen=True, array_like=True, tag=10):
    """A child gave its result."""

    task: int
    result: str | None = None


class ChildFailed(Event, frozen=True, array_like=True, tag=11):
    """A child failed, was terminated, or could not be started."""

    task: int
    failure: Failure


class TimerCreated(Event, frozen=True, array_like=True, tag=12):
    """A timer was asked for; one from `FOREVER` on never fires."""

    id: int
    fire_at: Moment
    name: str | None = None
    origin: Origin | None = None
    rerun_of: str | None = None


class TimerFired(Event, frozen=True, array_like=True, tag=13):
    """A timer's time came."""

    timer: int
    fire_at: Moment


class TurnStarted(Event, frozen=True, array_like=True, tag=14):
    """A turn of the worker began: its ``at`` is the time that the workflow's code sees.

    Attributes:
        version: Of the code that ran it, as its worker said.
        patches: That the code asked for up to then, in order, likewise.
    """

    version: str | None = None
    patches: tuple[str, ...] = ()


class EventSent(Event, frozen=True, array_like=True, tag=16):
    """An event was sent to another instance."""

    id: int
    instance: str
    name: str
    input: str | None = None
    app: str | None = None


class EventRaised(Event, frozen=True, array_like=True, tag=17):
    """An event came from outside; one of a ``token`` that came before is the same one, asked for once more."""

    name: str
    input: str | None = None
    token: str = ""


class Suspended(Event, frozen=True, array_like=True, tag=21):
    """No turn is to begin until it is resumed."""

    reason: str | None = None


class Resumed(Event, frozen=True, array_like=True, tag=22):
    """Turns may begin again."""

    reason: str | None = None


class Stalled(Event, frozen=True, array_like=True, tag=31):
    """The workers that there are cannot go on: 0 patches differ, 1 no such version, 2 too large for their protocol."""

    reason: int
    text: str


class DetachedCreated(Event, frozen=True, array_like=True, tag=32):
    """An instance was started that tells nobody how it ends."""

    id: int
    instance: str
    app: str | None = None


class Ancestor(_Value, frozen=True, array_like=True):
    """An instance as it was when it asked for what its history went along with.

    Attributes:
        app: The application that it belongs to.
        instance: Its id.
        workflow: Its workflow's name.
        events: What had happened to it, of `PlainEvent`, as stored, in runs: `mesh.workflows.propagation.events_of`.
    """

    app: str
    instance: str
    workflow: str
    events: tuple[bytes, ...]


class Retrying(Event, frozen=True, array_like=True, tag=100):
    """An attempt at an activity failed, and the engine makes another one at ``due``; workers are not told.

    Attributes:
        task: The id of its `TaskScheduled`.
        attempt: The number of the next attempt; the first one of all is 1.
        due: Unix time in seconds.
        failure: That of the attempt before.
    """

    task: int
    attempt: int
    due: float
    failure: Failure


class Inherited(Event, frozen=True, array_like=True, tag=101):
    """What its parent has handed on: behind `Started`; workers over HTTP are told of it, others by other means.

    Attributes:
        scope: What was asked for, by the protocol's number: see `mesh.workflows.propagation`.
        ancestors: The oldest first, the parent last.
    """

    scope: int
    ancestors: tuple[Ancestor, ...]

    @property
    def size(self) -> int:
        """The bytes of all that had happened, as stored."""
        return sum(len(run) for each in self.ancestors for run in each.events)


PlainEvent = (
    Started
    | Completed
    | Terminated
    | TaskScheduled
    | TaskCompleted
    | TaskFailed
    | ChildCreated
    | ChildCompleted
    | ChildFailed
    | TimerCreated
    | TimerFired
    | TurnStarted
    | EventSent
    | EventRaised
    | Suspended
    | Resumed
    | Stalled
    | DetachedCreated
    | Retrying
)
"""What an instance may hand on."""

AnyEvent = PlainEvent | Inherited
"""Any event, as a decoder reads it."""
