"""Dispatch: turns and activities are handed to the workers of this node, as these have room.

Work waits as names and numbers: an instance is read, and its turn or activity made, once somebody has room for that. A
worker that does not take something is given nothing of that name for a while. Activities that no worker of this
node has room for, or runs, go to other nodes (``forwarding.py``). What another application asks for waits here like
what is wanted here, within bounds; what another node of this one asks for is refused unless there is room at once, as
it can wait where it was.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from mesh.errors import AppFailedError, AppUnreachableError, MeshError
from mesh.workflows.actions import Answer
from mesh.workflows.capacity import TASK, TURN, Attachment, Backoff, Priority, WorkQueue, now
from mesh.workflows.contracts import WorkSource
from mesh.workflows.forwarding import FOREIGN, Forwarder
from mesh.workflows.handout import Handout
from mesh.workflows.operations import PREFIX
from mesh.workflows.peers import Peers
from mesh.workflows.settings import Limits
from mesh.workflows.worker import Place, Ref, TaskResult, TaskWork, TurnWork, Worker, WorkTooLargeError

__all__ = ["BACKOFF_SECONDS", "DRAIN_SECONDS", "MAX_FOREIGN", "MAX_FOREIGN_BYTES", "Dispatch"]

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 60.0  # For what a worker has that leaves.
BACKOFF_SECONDS = 0.2, 30.0  # That a worker is given nothing of a name that it has not taken: at first, and at most.
MAX_FOREIGN = 1000  # Activities of other applications that are here at once; beyond that they need a free worker,
MAX_FOREIGN_BYTES = 64 * 2**20  # and beyond that many bytes of those that wait.
_Work = TypeVar("_Work", TurnWork, TaskWork)
_Result = TypeVar("_Result", Answer, TaskResult)


@dataclass(slots=True, eq=False)
class _Foreign:
    """An activity that another node has asked for."""

    work: TaskWork
    size: int
    result: asyncio.Future[TaskResult]
    begun: bool = False


class Dispatch:
    """Hands out the work of one application on one node; a `mesh.workflows.contracts.Dispatch`."""

    def __init__(self, app: str, peers: Peers, changed: Callable[[], None] = lambda: None) -> None:
        """Have no worker yet.

        Args:
            app: The application.
            peers: Other nodes.
            changed: Is called when a worker was attached, or has gone.
        """
        self._app, self._changed = app, changed
        self._turns, self._tasks = WorkQueue(TURN), WorkQueue(TASK)
        self._attached: list[Attachment] = []
        self._foreign: dict[int, _Foreign] = {}
        self._numbers = itertools.count(1)
        self._handout = Handout()
        self._forwarder = Forwarder(app, peers, self._handout, self.task, self._pump_tasks)

    @asynccontextmanager
    async def run(self, engine: WorkSource) -> AsyncIterator[None]:
        """Give out what an engine has, while entered."""
        async with self._handout.run(engine):
            yield

    def limit(self, turns: Limits, tasks: Limits, gateways: int = 1) -> None:
        """Have no more out than that from here on, on one of so many gateways; at first there are no limits."""
        self._turns.slots.limit(turns, gateways)
        self._tasks.slots.limit(tasks, gateways)
        self._pump()

    # Workers

    @property
    def has_worker(self) -> bool:
        """Tell whether a worker of the application is attached."""
        return any(
            each.priority is not Priority.OPERATIONS and not each.worker.ended.is_set() for each in self._attached
        )

    @property
    def workers(self) -> Mapping[str, int]:
        """Count the application's workers by their titles."""
        return Counter(each.worker.title for each in self._attached if each.priority is not Priority.OPERATIONS)

    @asynccontextmanager
    async def attach(self, worker: Worker, priority: Priority = Priority.ANY) -> AsyncIterator[None]:
        """Give work to a worker while entered; leaving waits for what it has been given, not for ever."""
        attached = Attachment(worker, priority)
        self._attached = sorted([*self._attached, attached], key=lambda each: each.priority)
        try:
            self._changed()
            if priority is not Priority.OPERATIONS:
                self._handout.engine.worker_attached()
            self._pump()
            yield
        finally:
            self._attached.remove(attached)
            self._changed()
            self._pump()  # It may go to other nodes now.
            if not self.has_worker:
                self._refuse_foreign()
            try:
                if attached.running:
                    await asyncio.wait(attached.running, timeout=DRAIN_SECONDS)
            finally:
                for each in attached.running:
                    each.cancel()

    # What is wanted

    def turn(self, ref: Ref, name: str) -> None:
        """Have ``open_turn`` called once a worker that runs a workflow of this name has room; once at a time."""
        self._turns.waiting.add(name, ref, 0)
        self._place(self._turns, name)

    def task(self, ref: Ref, task: int, name: str, app: str | None) -> None:
        """Have ``open_task`` called once a worker has room for an activity of this name."""
        if app is None or app == self._app:
            self._tasks.waiting.add(name, ref, task)
            self._place(self._tasks, name)
        else:
            self._forwarder.add(app, ref, task, name)

    def forget(self, ref: Ref) -> None:
        """Want nothing more for an instance; what is out stays out, and its outcome may still come."""
        self._turns.waiting.forget(ref)
        self._tasks.waiting.forget(ref)
        self._forwarder.forget(ref)

    def place(self, ref: Ref, task: int) -> Place | None:
        """Tell where an activity is out; None = it is not, or not known."""
        return self._handout.places.get((ref, task))

    async def run_for(self, work: TaskWork) -> TaskResult:
        """Run an activity that another node asks for; raises as ``Worker.task`` does."""
        name, tasks = work.name, self._tasks
        if name.startswith(PREFIX) or not any(each.runs(TASK, name) for each in self._attached):
            raise AppUnreachableError(f"no worker of this node runs the activity {name!r}")
        ref, number = Ref(FOREIGN, f"{work.owner}/{work.instance}"), next(self._numbers)
        size = work.size
        if self._find(tasks, name, ref.id) is None and (work.owner == self._app or not self._may_wait(size)):
            raise AppUnreachableError(f"the workers of this node have no room for the activity {name!r}")
        foreign = self._foreign[number] = _Foreign(work, size, asyncio.get_running_loop().create_future())
        tasks.waiting.add(name, ref, number)
        self._place(tasks, name)
        try:
            return await foreign.result
        finally:
            self._foreign.pop(number, None)

    def _may_wait(self, size: int) -> bool:
        """Tell whether another application's activity of so many bytes may wait here, and not where it comes from."""
        waiting = sum([each.size for each in self._foreign.values() if not each.begun])
        return len(self._foreign) < MAX_FOREIGN and waiting + size <= MAX_FOREIGN_BYTES

    def _refuse_foreign(self) -> None:
        for foreign in self._foreign.values():
            if not foreign.begun and not foreign.result.done():
                foreign.result.set_exception(AppUnreachableError("this node has no worker now"))

    # Who gets it

    def _pump(self) -> None:
        for name in self._turns.waiting:
            self._place(self._turns, name)
        self._pump_tasks()

    def _pump_tasks(self) -> None:
        for name in self._tasks.waiting:
            self._place(self._tasks, name)

    def _place(self, work: WorkQueue, name: str) -> None:
        """Give out what waits under a name, as far as there is room."""
        if not self._handout.open:
            return
        waiting, kind = work.waiting, work.kind
        while (ref := waiting.first(name)) is not None:
            attached = self._find(work, name, ref.id)
            if attached is None:
                break
            ref, number = waiting.take(name)
            work.slots.take(name)
            attached.out[kind] += 1
            attached.given = next(self._numbers)
            if kind == TURN:
                running = self._run_turn(attached, ref, name)
            elif ref.partition == FOREIGN:
                running = self._run_foreign(attached, number, name)
            else:
                running = self._run_task(attached, ref, number, name)
            self._handout.start(running, attached.running)
        if ref is not None and kind == TASK and not name.startswith(PREFIX):
            self._forwarder.overflow(waiting, name)

    def _find(self, work: WorkQueue, name: str, instance: str) -> Attachment | None:
        """Give the worker that is to have the next one: who knows the instance, else who has the least."""
        if not work.slots.free(name):
            return None
        kind, priority, best = work.kind, None, None
        for each in self._attached:
            if priority is not None and each.priority is not priority:
                break
            if not each.runs(kind, name):
                continue
            priority = each.priority
            if not each.has_slot(kind, name):
                continue
            if kind == TURN and each.worker.knows(instance):
                return each
            if best is None or (each.out[kind], each.given) < (best.out[kind], best.given):
                best = each
        return best

    # What comes of it

    async def _run_turn(self, attached: Attachment, ref: Ref, name: str) -> None:
        engine, run = self._handout.engine, attached.worker.turn
        work, came = await self._outcome(attached, self._turns, name, engine.open_turn(ref), run)
        if work is None:
            self._handout.not_opened(came, lambda: self.turn(ref, name))
        elif isinstance(came, Answer):
            engine.turned(work, came)
        elif isinstance(came, WorkTooLargeError):
            engine.turn_impossible(work, str(came))
        else:
            engine.turn_lost(work, begun=not isinstance(came, AppUnreachableError))

    async def _run_task(self, attached: Attachment, ref: Ref, number: int, name: str) -> None:
        opened, run = self._handout.engine.open_task(ref, number), attached.worker.task
        self._handout.places[ref, number] = "", attached.worker.title
        work, came = await self._outcome(attached, self._tasks, name, opened, run)
        self._handout.places.pop((ref, number), None)
        if work is None:
            self._handout.not_opened(came, lambda: self.task(ref, number, name, None))
        else:
            self._handout.task_over(ref, work, came)

    async def _run_foreign(self, attached: Attachment, number: int, name: str) -> None:
        if (foreign := self._foreign.get(number)) is not None:
            foreign.begun = True
        work, came = await self._outcome(attached, self._tasks, name, _wanted(foreign), attached.worker.task)
        if work is None or foreign is None or foreign.result.done():
            return
        if isinstance(came, TaskResult):
            foreign.result.set_result(came)
        else:
            foreign.result.set_exception(came if isinstance(came, MeshError) else AppFailedError(repr(came)))

    async def _outcome(
        self,
        attached: Attachment,
        queue: WorkQueue,
        name: str,
        opened: Awaitable[_Work | None],
        run: Callable[[_Work], Awaitable[_Result]],
    ) -> tuple[_Work | None, _Result | BaseException | None]:
        """Have a worker do something, and free its slot; gives what it was, and what came of it.

        A failure is given, and so is a cancellation: what is cancelled here has only to tell the engine, and then ends.
        """
        work: _Work | None = None
        try:
            work = await opened
            if work is None:
                return None, None
            result = await run(work)
            attached.backoffs.pop((queue.kind, name), None)
            return work, result
        except WorkTooLargeError as error:
            return work, error
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - one failure must not end the others
            if work is not None and isinstance(error, Exception):
                self._back_off(attached, queue, name, error)
            return work, error
        finally:
            attached.out[queue.kind] -= 1
            queue.slots.give_back(name)
            if queue.waiting:
                self._place(queue, name)  # Whatever waits under that name has its turn first.
                for other in queue.waiting:
                    if other != name:
                        self._place(queue, other)

    def _back_off(self, attached: Attachment, queue: WorkQueue, name: str, error: Exception) -> None:
        what = "workflow" if queue.kind == TURN else "activity"
        if not isinstance(error, MeshError):
            logger.error("a worker failed at the %s %r", what, name, exc_info=error)
        if attached.worker.ended.is_set():
            return
        backoff = attached.backoffs.setdefault((queue.kind, name), Backoff(BACKOFF_SECONDS))
        if backoff.until > now():
            return  # Of several that it had at once, one is enough.
        away = isinstance(error, AppUnreachableError)
        seconds = backoff.longer() if away else backoff.shortest()  # One instance may be at fault: the engine's matter.
        logger.log(
            logging.DEBUG if away else logging.WARNING,
            "the %s %r is to be run again in %.1f s: %s",
            what,
            name,
            seconds,
            error,
        )
        until = backoff.until

        def over() -> None:
            backoff.end(until)
            self._place(queue, name)

        self._handout.later(seconds, over)


async def _wanted(foreign: _Foreign | None) -> TaskWork | None:
    return None if foreign is None or foreign.result.done() else foreign.work
