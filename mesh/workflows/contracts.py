"""The contracts between an engine and the parts around it; each has what one side uses of the other, and no more.

::

    Engine ──▶ Commits         reads and writes instances
           ──▶ Dispatch        has turns and activities handed out, which is the engine's again as a WorkSource
           ──▶ Deliver, Look   tells other instances, and looks at them
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from mesh.workflows.actions import Answer
from mesh.workflows.events import Event
from mesh.workflows.messages import AnyMessage, Told
from mesh.workflows.state import State, Step
from mesh.workflows.worker import Place, Ref, TaskResult, TaskWork, TurnWork

__all__ = ["Commits", "Deliver", "Dispatch", "Loaded", "Look", "Saved", "Until", "WorkSource"]

Until: TypeAlias = Callable[[State | None], bool]
"""Tells whether a state is the one that is waited for; None = there is no instance."""


class Saved(Protocol):
    """The place of an instance in the store: made by a `Commits`, which alone looks into it."""

    @property
    def size(self) -> int:
        """About how many bytes the instance takes in memory with its history."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An instance as it is stored."""

    state: State
    history: Sequence[Event]
    saved: Saved


class Commits(Protocol):
    """The store of the instances of one kind, as the owner of partitions writes it.

    The functions of one instance are never at work at the same time; those of different ones may be.
    """

    async def take(self, partition: int, epoch: int, owns: Callable[[], bool]) -> None:
        """Begin to own a partition: from now on nothing is accepted that a former owner writes.

        Raises:
            NotOwnerError: It is a later owner's.
            MeshError: The store failed; to be tried again.
        """

    def forget(self, partition: int) -> None:
        """Own it no more."""

    def scan(self, partition: int) -> AsyncIterator[tuple[str, State | None]]:
        """Give all that have not been put away; None = it cannot be read by this version."""

    def expiring(self, partition: int) -> AsyncIterator[tuple[float, str]]:
        """Give the instances that were put away and are to be deleted, with when, Unix time in seconds."""

    async def load(self, partition: int, instance: str) -> Loaded | None:
        """Read one that has not been put away, or has: then by ``State.ended``.

        Raises:
            WorkflowUnreadableError: It was written by a newer version.
            MeshError: The store failed.
        """

    async def commit(self, partition: int, instance: str, saved: Saved | None, step: Step) -> Saved:
        """Write a step, all or nothing; ``saved`` is that of the step before, None for what is new.

        Cancelled, or failed with anything but `NotOwnerError` and `WorkflowTooLargeError`, it may have been done: then
        the instance is to be loaded again before anything else happens to it.

        Raises:
            NotOwnerError: Another node owns the partition; nothing was done.
            WorkflowTooLargeError: The store cannot take so much at once; nothing was done.
            MeshError: The store failed.
        """

    async def end(self, partition: int, instance: str, saved: Saved, step: Step, until: float | None) -> Saved:
        """Write the last step of one, and put it away with it; ``until`` as in ``put_away``, and else as ``commit``.

        Until it is done, readers see the instance as it was before. One that is cut off in the middle is finished by
        ``load``. So it is for what a new owner reads without being told: the step before ``wants_owner``, or is due.
        """

    async def put_away(self, partition: int, instance: str, saved: Saved, state: State, until: float | None) -> None:
        """Move what has ended out of what ``scan`` gives; ``until`` when it is to be kept, None = for good.

        Doing so twice leaves the same behind.
        """

    async def purge(self, partition: int, instance: str) -> bool:
        """Delete all there is of one, whatever its state is; gives whether there was anything."""


Deliver: TypeAlias = Callable[[str, str, AnyMessage, float], Awaitable[Told]]
"""Tells an instance something: its application, its id, the message, and until when, Unix time in seconds.

Raises:
    WorkflowError: What its owner answers.
    MeshError: Nobody was there, or the outcome is not known: it may be told again.
"""


Look: TypeAlias = Callable[[str, str, float], Awaitable[State | None]]
"""Looks at an instance: its application, its id, and until when, Unix time in seconds; None = there is none.

Raises:
    MeshError: It cannot be told.
"""


class Dispatch(Protocol):
    """Hands out work, as the engine sees it: it is told names and numbers, and calls for the work itself later."""

    def turn(self, ref: Ref, name: str) -> None:
        """Have ``open_turn`` called once a worker that runs a workflow of this name has room; once at a time."""

    def task(self, ref: Ref, task: int, name: str, app: str | None) -> None:
        """Have ``open_task`` called once a worker has room for an activity of this name; ``app`` None = this one's."""

    def forget(self, ref: Ref) -> None:
        """Want nothing more for an instance; what is out stays out, and its outcome may still come."""

    def place(self, ref: Ref, task: int) -> Place | None:
        """Tell where an activity is out; None = it is not, or not known."""


class WorkSource(Protocol):
    """The engine, as a dispatch sees it: it makes the work that it has announced, and is told what came of it."""

    async def open_turn(self, ref: Ref) -> TurnWork | None:
        """Make the turn that an instance is to have; None when there is nothing to do after all."""

    async def open_task(self, ref: Ref, task: int) -> TaskWork | None:
        """Make an activity that is wanted; None when it is not wanted any more."""

    def turned(self, work: TurnWork, answer: Answer) -> None:
        """Take the answer to a turn; an answer to one that is not out any more has no effect."""

    def turn_lost(self, work: TurnWork, *, begun: bool = True) -> None:
        """Take note that a turn was not run: it is to be handed out again, later and later if it had begun."""

    def turn_impossible(self, work: TurnWork, reason: str) -> None:
        """Take note that no worker can be given a turn: the instance is stalled."""

    def resolved(self, ref: Ref, work: TaskWork, result: TaskResult) -> None:
        """Take what came of an activity; what nobody waits for has no effect."""

    def task_lost(self, ref: Ref, work: TaskWork, *, begun: bool) -> None:
        """Take note that nobody knows what came of an activity: another attempt, which counts if it had begun."""

    def worker_attached(self) -> None:
        """Look again at what was stalled."""
