"""The contract of a worker, which runs the code of workflows and activities, over whatever wire."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from mesh.workflows.actions import Answer
from mesh.workflows.events import Event, Failure, Inherited, Trace

__all__ = ["Place", "Ref", "TaskResult", "TaskWork", "TurnWork", "WorkTooLargeError", "Worker"]

Place: TypeAlias = tuple[str, str]
"""Where an activity is out: the node, empty for the owner's, and there the worker's title, as far as it is known."""


class Ref(NamedTuple):
    """An instance of this application: its partition, and its id."""

    partition: int
    id: str


@dataclass(slots=True, eq=False)
class TurnWork:
    """A turn to run.

    Attributes:
        ref: The instance.
        app: Its application.
        name: The workflow's.
        execution: Id of the execution.
        generation: Of it.
        number: Of the turn, in the generation; a turn that is handed out again keeps it.
        past: The history, as committed.
        new: What is new in this turn; begins with `TurnStarted`.
        caller: The application that has started the instance, where that is another one; else empty.
        rendered: What workers have made of ``past``, each under a name of its wire, event by event from the first: who
            needs it again need not make it again. It belongs to the instance, and is cleared with what it was made of.
        inherited: What its parent has handed on to the instance; it stands in ``past`` or ``new``, too.
    """

    ref: Ref
    app: str
    name: str
    execution: str
    generation: int
    number: int
    past: Sequence[Event]
    new: Sequence[Event]
    caller: str = ""
    rendered: dict[str, list[bytes]] = field(default_factory=dict)
    inherited: Inherited | None = None


class TaskWork(msgspec.Struct, eq=False, omit_defaults=True):
    """An activity to run, of an instance of this application or another one.

    Attributes:
        owner: The application of the instance.
        instance: Its id.
        workflow: Its workflow's name.
        generation: Of the execution that wants the result.
        task: The id of its `TaskScheduled`.
        attempt: Which one it is, from 1 on.
        name: The activity's.
        execution_id: The same for all attempts.
        app: Whose worker it is for.
        since: When it was scheduled, Unix time in seconds.
        trace: What it is below; who tells of its span puts that here.
        inherited: What the instance hands on to it: up to 1 MiB, which who has written it out lets go of, as an
            activity may take long.
    """

    owner: str
    instance: str
    workflow: str
    generation: int
    task: int
    attempt: int
    name: str
    execution_id: str
    app: str
    since: float
    input: str | None = None
    version: str | None = None
    trace: Trace | None = None
    inherited: Inherited | None = None

    @property
    def size(self) -> int:
        """About how many bytes it takes: what it is given."""
        return len(self.input or "") + (0 if self.inherited is None else self.inherited.size)


class TaskResult(msgspec.Struct, frozen=True):
    """The outcome of an activity: its result, unless ``failure`` says why there is none."""

    result: str | None = None
    failure: Failure | None = None


class Worker(Protocol):
    """Runs turns and activities.

    Attributes:
        title: How it is told of, as ``grpc-python/1.68`` or ``http``.
        max_turns: The most turns that it is given at once.
        max_tasks: The most activities likewise.
        ended: Set when it takes nothing any more.
    """

    title: str
    max_turns: int
    max_tasks: int
    ended: asyncio.Event

    def runs_workflow(self, name: str) -> bool:
        """Tell whether it may have a workflow."""

    def runs_activity(self, name: str) -> bool:
        """Tell whether it may have an activity."""

    def knows(self, instance: str) -> bool:
        """Tell whether it still has the history of an instance that it was given before."""

    async def turn(self, work: TurnWork) -> Answer:
        """Run a turn.

        Raises:
            AppUnreachableError: It has not taken it now.
            AppFailedError: It is not known what it did; it is to be run again.
            WorkTooLargeError: It can never be given so much.
        """

    async def task(self, work: TaskWork) -> TaskResult:
        """Run an activity.

        Raises:
            AppUnreachableError: It has not taken it now: it counts as no attempt.
            AppFailedError: It is not known what it did; it is to be run again.
        """


class WorkTooLargeError(Exception):
    """A turn cannot be given to a worker, now or later: the message says why."""
