"""The instances of the partitions that this node owns: who asks for them, and who gives their work to workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from mesh.deadlines import Deadlines
from mesh.errors import DeadlineExceededError, MeshError
from mesh.ownership.errors import NobodyHostsError, NotOwnerError
from mesh.tasks import task_group
from mesh.workflows import propagation, turns
from mesh.workflows.actions import Answer
from mesh.workflows.batch import Observer
from mesh.workflows.contracts import Commits, Deliver, Dispatch, Look, Until
from mesh.workflows.entry import Entry, Impossible, OwnedPartition
from mesh.workflows.errors import (
    WorkflowExistsError,
    WorkflowNotEndedError,
    WorkflowNotFoundError,
    WorkflowTooLargeError,
)
from mesh.workflows.events import ChildCreated, Failure, Parent
from mesh.workflows.mailbox import ChildrenOpenError, PendingCall, Request
from mesh.workflows.messages import AnyMessage, Purge, StartWithHistory, Told
from mesh.workflows.observed import below
from mesh.workflows.operations import PREFIX
from mesh.workflows.outgoing import parent_of
from mesh.workflows.partitions import DRAIN_SECONDS, Partitions
from mesh.workflows.processor import Processor
from mesh.workflows.state import State
from mesh.workflows.waiting import Task, Waiting, waiting_of
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork

__all__ = ["MEMORY_BYTES", "Engine", "Observer"]

MEMORY_BYTES = 64 * 2**20
CHILDREN_AT_ONCE = 32  # That are purged, or looked at, at the same time, of one instance.
_T = TypeVar("_T")


class Engine:
    """Runs instances while ``run`` is entered: a `mesh.ownership.owning.Keeper` of the partitions that hold them.

    It is the `mesh.workflows.contracts.WorkSource` of its dispatch.
    """

    def __init__(
        self,
        app: str,
        commits: Commits,
        dispatch: Dispatch,
        deliver: Deliver,
        sure: Callable[[int], bool],
        *,
        look: Look,
        clock: Callable[[], float] = time.time,
        memory_bytes: int = MEMORY_BYTES,
        retention: Callable[[State], float | None] = lambda _: None,
        observer: Observer | None = None,
        drain: float = DRAIN_SECONDS,
    ) -> None:
        """Prepare; nothing is read.

        Args:
            app: The application that the instances belong to.
            commits: Where they are kept.
            dispatch: Gives turns and activities to workers.
            deliver: Tells other instances something, wherever they are.
            sure: Tells whether this node owns a partition now, for sure.
            look: Looks at other instances, wherever they are.
            clock: Unix time in seconds; it may be set.
            memory_bytes: What the instances in memory may take, about; those that are at work stay beyond it.
            retention: For how many seconds one that has ended is kept; None = for good.
            observer: Told of every write.
            drain: Seconds for what is out when a partition is left; then it runs again at the next owner.
        """
        self._app = app
        self._clock = clock
        self._dispatch = dispatch
        self._deliver, self._look = deliver, look
        self._processor = Processor(
            app, commits, dispatch, deliver, sure, clock, memory_bytes, retention, observer
        )  # fmt: skip
        self._processor.delivery.complete = self._complete
        self._partitions = Partitions(self._processor, commits, dispatch, drain)
        self._deadlines = Deadlines()
        self.take, self.leave, self.drop = self._partitions.take, self._partitions.leave, self._partitions.drop

    @property
    def loaded(self) -> tuple[int, int]:
        """How many instances are in memory, and about how many bytes they take."""
        return len(self._processor.memory), self._processor.memory.bytes

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run what is to be run; leaving drops all partitions."""
        async with task_group() as tasks:
            self._processor.begin(tasks)
            self._partitions.begin(tasks)
            try:
                yield
            finally:
                self._processor.stop()
                for partition in list(self._processor.owned):
                    self.drop(partition)

    # For who asks

    async def tell(self, ref: Ref, message: AnyMessage, deadline: float) -> Told:
        """Tell an instance something; returns once that is stored.

        Raises:
            WorkflowError: It cannot be done.
            NotOwnerError: This node does not own the partition; nothing was done.
            OwnerLostError: It may have been done.
            MeshError: The store failed; it may have been done.
        """
        return await self._within(deadline, self._tell, ref, message, deadline)

    async def _tell(self, ref: Ref, message: AnyMessage, deadline: float) -> Told:
        owned = await self._own(ref)
        if isinstance(message, Purge) and message.recursive:
            return await self._purge_with_children(owned, ref, message, deadline)
        over = 0
        while True:
            try:
                return await self._ask(owned, ref, message, over)
            except ChildrenOpenError as error:
                await _each(error.children, partial(self._check_over, ref.id, deadline))
                over, owned = error.generation, await self._own(ref)

    async def _ask(self, owned: OwnedPartition, ref: Ref, message: AnyMessage, over: int = 0) -> Told:
        told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        entry = self._processor.entry(owned, ref.id)
        entry.mailbox.requests.append(Request(message, told, over))
        self._processor.wake(entry)
        return await told

    async def _check_over(self, parent_id: str, deadline: float, app: str, id: str, parent: Parent) -> None:
        """Raise ``WorkflowExistsError`` where a child has not ended."""
        state = await self._look(app, id, deadline)
        if state is not None and state.ended is None and state.parent == parent:
            text = f"a workflow with ID '{parent_id}' has ended, and its child '{id[:200]}' of {app} is active"
            raise WorkflowExistsError(text)

    async def _purge_with_children(self, owned: OwnedPartition, ref: Ref, message: Purge, deadline: float) -> Told:
        """Purge the children first, so that what is left of it can be purged again."""
        children = await self._open(self._processor.entry(owned, ref.id), _children_of(message), alone=True)
        told = Told(0)

        async def purge(app: str, id: str, parent: Parent) -> None:
            nonlocal told
            try:
                one = await self._deliver(app, id, replace(message, parent=parent), deadline)
            except WorkflowNotFoundError:
                return
            except NobodyHostsError:
                if message.force:  # Its application may never come: a name may be misspelt.
                    return
                raise
            told = Told(told.count + one.count, told.complete and one.complete)

        await _each(children, purge)
        one = await self._ask(await self._own(ref), ref, replace(message, recursive=False))
        return Told(told.count + one.count, told.complete)

    async def wait(self, ref: Ref, until: Until, deadline: float) -> None:
        """Return when the state of an instance is as wanted; raises as ``tell`` does.

        Raises:
            DeadlineExceededError: It was not in time.
        """
        await self._within(deadline, self._wait, ref, until)

    async def _wait(self, ref: Ref, until: Until) -> None:
        owned = await self._own(ref)
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(entry: Entry) -> bool:
            if until(None if entry.instance is None else entry.instance.state):
                return True
            entry.mailbox.watch(until, seen)
            return False

        entry = self._processor.entry(owned, ref.id)
        try:
            if not await self._open(entry, look, alone=True):
                await seen
            elif not self._processor.owns(owned):
                raise _not_owner(ref)
        finally:
            entry.mailbox.unwatch(seen)
            self._processor.release(entry)

    async def waiting(self, ref: Ref, deadline: float) -> Waiting:
        """Tell what an instance waits for: nothing where there is none, or it has ended; raises as ``tell`` does."""
        return await self._within(deadline, self._waiting, ref)

    async def _waiting(self, ref: Ref) -> Waiting:
        entry = self._processor.entry(await self._own(ref), ref.id)
        return await self._open(entry, self._tell_waiting, alone=False)

    def _tell_waiting(self, entry: Entry) -> Waiting:
        instance = entry.instance
        if instance is None:
            return Waiting()
        tasks = (self._task(entry, id) for id in instance.tasks if id not in entry.unwritten.settled)
        return waiting_of(instance, tasks, entry.unwritten.settled.__contains__)

    def _task(self, entry: Entry, id: int) -> Task:
        instance = entry.instance
        assert instance is not None
        task, out = instance.tasks[id], id in entry.tasks.begun
        node, worker = (self._dispatch.place(entry.ref, id) if out else None) or ("", "")
        retry = None if out else instance.retries.get(id)
        due = retry.due if retry is not None and retry.due > self._clock() else None
        return Task(id, task.name, task.app or self._app, task.at, self._attempt(entry, id), out, node, worker, due)

    async def _own(self, ref: Ref) -> OwnedPartition:
        owned = self._processor.owned.get(ref.partition)
        if owned is None or owned.leaving or not self._processor.owns(owned):
            raise _not_owner(ref)
        if not owned.taken.done():
            await asyncio.shield(owned.taken)
        if not owned.taken.result() or owned.leaving:
            raise _not_owner(ref)
        return owned

    async def _within(self, deadline: float, call: Callable[..., Coroutine[Any, Any, _T]], *arguments: object) -> _T:
        seconds = deadline - self._clock()
        if seconds <= 0:
            raise DeadlineExceededError("the deadline has passed")
        return await self._deadlines.within(seconds, call, *arguments)

    async def _open(self, entry: Entry, make: Callable[[Entry], _T], *, alone: bool) -> _T:
        """Make something of an instance once it is in memory, and with ``alone`` not in the middle of a write."""
        if entry.known and not (alone and entry.busy):
            return make(entry)
        made: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        entry.mailbox.calls.append(PendingCall(made, partial(make, entry)))
        self._processor.wake(entry)
        return await made

    # For what gives work to workers

    async def open_turn(self, ref: Ref) -> TurnWork | None:
        """See `mesh.workflows.contracts.WorkSource`."""
        entry = self._processor.find(ref)
        if entry is None or not entry.turn.queued:
            return None
        try:
            return await self._open(entry, self._begin, alone=True)
        except MeshError:  # It is read again, and asks for a turn then.
            entry.turn.unqueue()
            return None
        except asyncio.CancelledError:
            if entry.turn.work is not None:  # It was made just then, and nobody has it.
                self.turn_lost(entry.turn.work, begun=False)
            raise

    def _begin(self, entry: Entry) -> TurnWork | None:
        entry.turn.unqueue()
        instance = entry.instance
        if instance is None or entry.turn.open is not None or entry.partition.leaving:
            return None
        again = entry.turn.take_retry()
        turn = turns.begin(instance, entry.unwritten.outcomes, self._clock(), again=again)
        if turn is None:
            self._processor.scheduler.fire(entry)  # The clock may have been set back before its time.
            return None
        state, started = instance.state, instance.started
        work = TurnWork(
            entry.ref,
            self._app,
            state.name,
            state.execution,
            turn.generation,
            turn.number,
            tuple(instance.history),  # As it is now: it grows.
            turn.new,
            "" if started is None else started.caller,
            entry.rendered,
            instance.inherited,
        )
        entry.turn.begin(turn, work)
        entry.coalescing.begin(asyncio.get_running_loop().time())
        return work

    async def open_task(self, ref: Ref, task: int) -> TaskWork | None:
        """See `mesh.workflows.contracts.WorkSource`."""
        entry = self._processor.find(ref)
        if entry is None or task not in entry.tasks.attempts or entry.partition.leaving:
            return None

        def begin(entry: Entry) -> TaskWork | None:
            tasks = entry.tasks
            if task not in tasks.attempts or task in entry.unwritten.settled or entry.partition.leaving:
                return None
            if (work := self._work(entry, task)) is None:
                tasks.done(task)
                return None
            tasks.begin(task)
            return self._with_history(entry, work)

        try:
            return await self._open(entry, begin, alone=False)
        except MeshError:  # It is read again, and dispatched then.
            entry.tasks.done(task)
            return None

    def _work(self, entry: Entry, id: int) -> TaskWork | None:
        instance = entry.instance
        task = None if instance is None else instance.tasks.get(id)
        if instance is None or task is None:
            return None
        state = instance.state
        return TaskWork(
            self._app,
            entry.ref.id,
            state.name,
            state.generation,
            id,
            self._attempt(entry, id),
            task.name,
            task.execution_id,
            task.app or self._app,
            task.at,
            task.input,
            task.version,
            task.trace or (None if instance.started is None else below(instance.started.trace, state.execution)),
        )

    def _attempt(self, entry: Entry, id: int) -> int:
        decided = 1 if entry.instance is None else entry.instance.attempts.get(id, 1)
        return max(decided, entry.tasks.attempts.get(id, 1))

    def _with_history(self, entry: Entry, work: TaskWork) -> TaskWork | None:
        """Put into an activity what goes along with it; None = that is too much, and it has failed."""
        instance = entry.instance
        assert instance is not None
        if work.name.startswith(PREFIX):  # Nobody there would look at it.
            return work
        try:
            work.inherited = propagation.handed_on(instance, instance.tasks[work.task], entry.rendered)
        except WorkflowTooLargeError as error:
            self._settle(entry.ref, work, TaskResult(failure=Failure("WorkflowTooLarge", str(error), final=True)))
            return None
        return work

    async def _complete(self, ref: Ref, message: StartWithHistory) -> StartWithHistory:
        """Put into a message of an outbox what goes along with it."""

        def complete(entry: Entry) -> StartWithHistory:
            return propagation.complete(message, entry.instance, entry.rendered)

        return await self._open(self._processor.entry(await self._own(ref), ref.id), complete, alone=False)

    def turned(self, work: TurnWork, answer: Answer) -> None:
        """See `mesh.workflows.contracts.WorkSource`."""
        self._reply(work, answer)

    def turn_impossible(self, work: TurnWork, reason: str) -> None:
        """See `mesh.workflows.contracts.WorkSource`."""
        self._reply(work, Impossible(reason))

    def _reply(self, work: TurnWork, answer: Answer | Impossible) -> None:
        entry = self._processor.find(work.ref)
        if entry is not None and entry.turn.work is work:
            entry.turn.reply(answer)
            self._processor.wake(entry)

    def turn_lost(self, work: TurnWork, *, begun: bool = True) -> None:
        """See `mesh.workflows.contracts.WorkSource`."""
        entry = self._processor.find(work.ref)
        if entry is None or entry.turn.work is not work:
            return
        if begun:
            self._processor.scheduler.turn_lost(entry)
        else:
            entry.turn.clear()
        if entry.partition.leaving:
            entry.partition.quiet.set()
        elif entry.known:
            self._processor.scheduler.advance(entry)

    def resolved(self, ref: Ref, work: TaskWork, result: TaskResult) -> None:
        """See `mesh.workflows.contracts.WorkSource`."""
        self._settle(ref, work, result)

    def task_lost(self, ref: Ref, work: TaskWork, *, begun: bool) -> None:
        """See `mesh.workflows.contracts.WorkSource`."""
        if begun:
            self._settle(ref, work, None)
        elif (entry := self._processor.find(ref)) is not None and entry.tasks.returned(work.task, work.generation):
            if entry.partition.leaving:
                entry.partition.quiet.set()
            else:
                self._dispatch.task(ref, work.task, work.name, None if work.app == self._app else work.app)

    def _settle(self, ref: Ref, work: TaskWork, result: TaskResult | None) -> None:
        owned = self._processor.owned.get(ref.partition)
        if owned is None:
            return
        entry = self._processor.entry(owned, ref.id)
        if entry.known and not entry.busy:
            self._processor.scheduler.settle(entry, work, result)
        else:
            entry.tasks.returned(work.task, work.generation)
            entry.mailbox.results.append((work, result))
            self._processor.wake(entry)
        if owned.leaving:
            owned.quiet.set()

    def worker_attached(self) -> None:
        """See `mesh.workflows.contracts.WorkSource`."""
        for owned in self._processor.owned.values():
            for id in list(owned.stalled):
                entry = self._processor.entry(owned, id)
                entry.turn.retry()
                if entry.known and not entry.busy:
                    self._processor.scheduler.advance(entry)
                elif not entry.known:
                    self._processor.scheduler.due(entry.ref, self._clock())


def _children_of(message: Purge) -> Callable[[Entry], Sequence[tuple[str, str, Parent]]]:
    """Give what finds the children that are to be purged with an instance, as it is in memory, and whose they are."""

    def children(entry: Entry) -> Sequence[tuple[str, str, Parent]]:
        instance = entry.instance
        if instance is None:
            raise WorkflowNotFoundError(entry.ref.id)
        state = instance.state
        if message.parent not in (None, state.parent):
            return ()
        if state.ended is None and not message.force:
            raise WorkflowNotEndedError(f"the workflow instance '{entry.ref.id[:200]}' has not ended")
        return [
            (event.app or instance.app, event.instance, parent_of(instance.app, instance.id, state, event))
            for event in instance.history
            if isinstance(event, ChildCreated)
        ]

    return children


async def _each(children: Sequence[tuple[str, str, Parent]], do: Callable[..., Coroutine[Any, Any, None]]) -> None:
    """Do something with each child, with some at the same time; the first error ends it."""
    waiting = iter(children)

    async def work() -> None:
        for child in waiting:
            await do(*child)

    async with task_group() as tasks:
        for _ in range(min(CHILDREN_AT_ONCE, len(children))):
            tasks.create_task(work(), name="workflows-children")


def _not_owner(ref: Ref) -> NotOwnerError:
    return NotOwnerError(f"this node does not own partition {ref.partition} of workflows, or will not for long")
