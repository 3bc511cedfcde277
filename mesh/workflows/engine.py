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
from mesh.workflows import finishing
from mesh.workflows.actions import Answer
from mesh.workflows.contracts import Commits, Deliver, Dispatch, Look, Until
from mesh.workflows.errors import WorkflowExistsError, WorkflowNotEndedError, WorkflowNotFoundError
from mesh.workflows.events import ChildCreated, Parent
from mesh.workflows.memory import Asked, ChildrenOpenError, Entry, Held, Impossible, Opening
from mesh.workflows.messages import AnyMessage, Purge, Told
from mesh.workflows.observed import below
from mesh.workflows.outgoing import parent_of
from mesh.workflows.partitions import DRAIN_SECONDS, Partitions
from mesh.workflows.running import Observer, Running
from mesh.workflows.state import State
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork

__all__ = ["MEMORY_BYTES", "Engine", "Observer"]

MEMORY_BYTES = 64 * 2**20
CHILDREN_AT_ONCE = 32  # That are purged, or looked at, at the same time, of one instance.
_T = TypeVar("_T")


class Engine:
    """Runs instances while ``run`` is entered; an implementation of `mesh.workflows.contracts.Engine`."""

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
        self._running = Running(
            app, commits, dispatch, deliver, sure, clock, memory_bytes, retention, observer
        )  # fmt: skip
        self._partitions = Partitions(self._running, commits, dispatch, drain)
        self._deadlines = Deadlines()
        self.take, self.leave, self.drop = self._partitions.take, self._partitions.leave, self._partitions.drop

    @property
    def loaded(self) -> tuple[int, int]:
        """How many instances are in memory, and about how many bytes they take."""
        return len(self._running.memory), self._running.memory.bytes

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run what is to be run; leaving drops all partitions."""
        async with task_group() as tasks:
            self._running.begin(tasks)
            self._partitions.begin(tasks)
            try:
                yield
            finally:
                self._running.stop()
                for partition in list(self._running.held):
                    self.drop(partition)

    # For who asks

    async def tell(self, ref: Ref, message: AnyMessage, deadline: float) -> Told:
        """See `mesh.workflows.contracts.Engine`."""
        return await self._within(deadline, self._tell, ref, message, deadline)

    async def _tell(self, ref: Ref, message: AnyMessage, deadline: float) -> Told:
        held = await self._own(ref)
        if isinstance(message, Purge) and message.recursive:
            return await self._purge_with_children(held, ref, message, deadline)
        over = 0
        while True:
            try:
                return await self._ask(held, ref, message, over)
            except ChildrenOpenError as error:
                await _each(error.children, partial(self._check_over, ref.id, deadline))
                over, held = error.generation, await self._own(ref)

    async def _ask(self, held: Held, ref: Ref, message: AnyMessage, over: int = 0) -> Told:
        told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        entry = self._running.entry(held, ref.id)
        entry.asked.append(Asked(message, told, over))
        self._running.wake(entry)
        return await told

    async def _check_over(self, parent_id: str, deadline: float, app: str, id: str, parent: Parent) -> None:
        """Raise ``WorkflowExistsError`` where a child has not ended."""
        state = await self._look(app, id, deadline)
        if state is not None and state.ended is None and state.parent == parent:
            text = f"a workflow with ID '{parent_id}' has ended, and its child '{id[:200]}' of {app} is active"
            raise WorkflowExistsError(text)

    async def _purge_with_children(self, held: Held, ref: Ref, message: Purge, deadline: float) -> Told:
        """Purge the children first, so that what is left of it can be purged again."""
        children = await self._open(self._running.entry(held, ref.id), _children_of(message), alone=True)
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
        """See `mesh.workflows.contracts.Engine`."""
        await self._within(deadline, self._wait, ref, until)

    async def _wait(self, ref: Ref, until: Until) -> None:
        held = await self._own(ref)
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(entry: Entry) -> bool:
            if until(None if entry.instance is None else entry.instance.state):
                return True
            entry.waiters = [each for each in entry.waiters if not each[1].done()]
            entry.waiters.append((until, seen))
            return False

        if await self._open(self._running.entry(held, ref.id), look, alone=True):
            if not self._running.owns(held):
                raise _not_owner(ref)
            return
        await seen

    def open_tasks(self, ref: Ref) -> Sequence[tuple[TaskWork, bool]]:
        """See `mesh.workflows.contracts.Engine`."""
        entry = self._running.find(ref)
        if entry is None or entry.instance is None:
            return ()
        works = ((self._work(entry, id), id in entry.begun) for id in entry.instance.tasks if id not in entry.settled)
        return [(work, out) for work, out in works if work is not None]

    async def _own(self, ref: Ref) -> Held:
        held = self._running.held.get(ref.partition)
        if held is None or held.leaving or not self._running.owns(held):
            raise _not_owner(ref)
        if not held.taken.done():
            await asyncio.shield(held.taken)
        if not held.taken.result() or held.leaving:
            raise _not_owner(ref)
        return held

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
        entry.opening.append(Opening(made, make))
        self._running.wake(entry)
        return await made

    # For what gives work to workers

    async def open_turn(self, ref: Ref) -> TurnWork | None:
        """See `mesh.workflows.contracts.Engine`."""
        entry = self._running.find(ref)
        if entry is None or not entry.queued:
            return None
        try:
            return await self._open(entry, self._begin, alone=True)
        except MeshError:  # It is read again, and asks for a turn then.
            entry.queued = False
            return None
        except asyncio.CancelledError:
            if entry.work is not None:  # It was made just then, and nobody has it.
                self.turn_lost(entry.work, begun=False)
            raise

    def _begin(self, entry: Entry) -> TurnWork | None:
        entry.queued = False
        instance = entry.instance
        if instance is None or entry.turn is not None or entry.held.leaving:
            return None
        turn = finishing.begin(instance, entry.volatile, self._clock(), again=entry.again)
        entry.again = False
        if turn is None:
            self._running.scheduler.fire(entry)  # The clock may have been set back before its time.
            return None
        state, started = instance.state, instance.started
        entry.turn = turn
        entry.pace.begun = asyncio.get_running_loop().time()
        entry.work = TurnWork(
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
        )
        return entry.work

    async def open_task(self, ref: Ref, task: int) -> TaskWork | None:
        """See `mesh.workflows.contracts.Engine`."""
        entry = self._running.find(ref)
        if entry is None or task not in entry.tasks or entry.held.leaving:
            return None

        def begin(entry: Entry) -> TaskWork | None:
            if task not in entry.tasks or task in entry.settled or entry.held.leaving:
                return None
            if (work := self._work(entry, task)) is None:
                del entry.tasks[task]
            else:
                entry.begun.add(task)
            return work

        try:
            return await self._open(entry, begin, alone=False)
        except MeshError:  # It is read again, and dispatched then.
            entry.tasks.pop(task, None)
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
            max(instance.attempts.get(id, 1), entry.tasks.get(id, 1)),
            task.name,
            task.execution_id,
            task.app or self._app,
            task.at,
            task.input,
            task.version,
            task.trace or (None if instance.started is None else below(instance.started.trace, state.execution)),
        )

    async def turned(self, work: TurnWork, answer: Answer) -> None:
        """See `mesh.workflows.contracts.Engine`; it returns at once, what is written then is the engine's."""
        self._reply(work, answer)

    async def turn_impossible(self, work: TurnWork, reason: str) -> None:
        """See `mesh.workflows.contracts.Engine`."""
        self._reply(work, Impossible(reason))

    def _reply(self, work: TurnWork, answer: Answer | Impossible) -> None:
        entry = self._running.find(work.ref)
        if entry is not None and entry.work is work:
            entry.work, entry.answer = None, answer
            self._running.wake(entry)

    def turn_lost(self, work: TurnWork, *, begun: bool = True) -> None:
        """See `mesh.workflows.contracts.Engine`."""
        entry = self._running.find(work.ref)
        if entry is None or entry.work is not work:
            return
        if begun:
            self._running.scheduler.turn_lost(entry)
        else:
            entry.turn = entry.work = None
        if entry.held.leaving:
            entry.held.quiet.set()
        elif entry.known:
            self._running.scheduler.advance(entry)

    def resolved(self, ref: Ref, work: TaskWork, result: TaskResult) -> None:
        """See `mesh.workflows.contracts.Engine`."""
        self._settle(ref, work, result)

    def task_lost(self, ref: Ref, work: TaskWork, *, begun: bool) -> None:
        """See `mesh.workflows.contracts.Engine`."""
        if begun:
            self._settle(ref, work, None)
        elif (entry := self._running.find(ref)) is not None and work.task in entry.begun:
            entry.begun.discard(work.task)
            if entry.held.leaving:
                entry.held.quiet.set()
            else:
                self._dispatch.task(ref, work.task, work.name, None if work.app == self._app else work.app)

    def _settle(self, ref: Ref, work: TaskWork, result: TaskResult | None) -> None:
        held = self._running.held.get(ref.partition)
        if held is None:
            return
        entry = self._running.entry(held, ref.id)
        if entry.known and not entry.busy:
            self._running.scheduler.settle(entry, work, result)
        else:
            entry.begun.discard(work.task)
            entry.results.append((work, result))
            self._running.wake(entry)
        if held.leaving:
            held.quiet.set()

    def worker_attached(self) -> None:
        """See `mesh.workflows.contracts.Engine`."""
        for held in self._running.held.values():
            for id in list(held.stalled):
                entry = self._running.entry(held, id)
                entry.again = True
                if entry.known and not entry.busy:
                    self._running.scheduler.advance(entry)
                elif not entry.known:
                    self._running.scheduler.due(entry.ref, self._clock())


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
