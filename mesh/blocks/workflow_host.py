"""A node that hosts the workflows of its application: engine, store, dispatch and activities for other nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from mesh.blocks.workflow_operations import OperationsWorker
from mesh.errors import MeshError
from mesh.ownership.table import Standing
from mesh.tasks import task_group
from mesh.workflows import observed
from mesh.workflows.capacity import Priority
from mesh.workflows.committing import Committer
from mesh.workflows.dispatch import Dispatch
from mesh.workflows.engine import Engine
from mesh.workflows.remote import KIND, Remote
from mesh.workflows.settings import WorkflowSettings, settings_of
from mesh.workflows.state import Status

if TYPE_CHECKING:
    from mesh.blocks.block import Parts
    from mesh.store import StateStore
    from mesh.workflows.actions import Answer
    from mesh.workflows.contracts import Deliver, Look
    from mesh.workflows.instance import Instance
    from mesh.workflows.state import State, Step
    from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork, Worker

__all__ = ["WorkflowHost"]

BACK_SECONDS = 2.0  # A worker that is back within that has not been away: nothing moves to other nodes.
SHARE_SECONDS = 5.0  # Between looks at how many gateways share a limit.


class WorkflowHost:
    """The engine and all that it works with, at work while ``run`` is entered.

    Attributes:
        keeper: The engine.
        dispatch: What gives work to workers.
    """

    def __init__(
        self,
        parts: Parts,
        live: StateStore,
        ended: StateStore,
        deliver: Deliver,
        look: Look,
        ready: Callable[..., None],
    ) -> None:
        """Prepare.

        Args:
            parts: The node's.
            live: Has the instances.
            ended: Has those that were put away.
            deliver: Tells other instances.
            look: Looks at them.
            ready: Is told whether there is a worker.
        """
        self._parts, self._ready = parts, ready
        self._going: asyncio.TimerHandle | None = None
        self._settings, self._gateways = WorkflowSettings(), 1
        app = parts.caller.app_id
        self._kind = KIND + app
        self._remote = Remote(parts.exchange, parts.owners, parts.caller, self._allows)
        self.dispatch = Dispatch(app, self._remote, self._changed)
        self._committer = Committer(self._kind, live, ended)
        self.keeper = Engine(
            app,
            self._committer,
            self.dispatch,
            deliver,
            self._sure,
            look=look,
            retention=lambda state: self._settings.kept.get(state.status),
            observer=self._observe,
        )
        self.configure()

    def configure(self) -> None:
        """Go by the node's Configuration as it is now."""
        self._settings = settings_of(self._parts.configuration.spec.workflow)
        self._limit()

    def _limit(self) -> None:
        self.dispatch.limit(self._settings.turns, self._settings.tasks, self._gateways)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Be at work; what is owned is to be handed over before it is left."""
        operations = OperationsWorker(self._parts.run, self._parts.caller)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._committer.run())
            await stack.enter_async_context(self.dispatch.run(self.keeper))
            await stack.enter_async_context(self.keeper.run())
            await stack.enter_async_context(self.attached(operations, Priority.OPERATIONS))
            await stack.enter_async_context(self._remote.serve(self.dispatch.run_for))
            tasks = await stack.enter_async_context(task_group())
            sharing = tasks.create_task(self._share(), name="workflows-share")
            try:
                yield
            finally:
                sharing.cancel()
                if self._going is not None:
                    self._going.cancel()

    @asynccontextmanager
    async def attached(self, worker: Worker, priority: Priority) -> AsyncIterator[None]:
        """Give work to a worker while entered, and tell observers what comes of it."""
        async with self.dispatch.attach(_Observed(self._parts, worker), priority):
            yield

    # What others say

    def _sure(self, partition: int) -> bool:
        return self._parts.owners.epoch(self._kind, partition) is not None

    def _allows(self, app: str, name: str) -> bool:
        """Ask this node's rules about another application of its namespace."""
        own, observer = self._parts.caller, self._parts.observer
        allowed = self._parts.workflow_access.allows(
            app, own.namespace, own.app_id, own.namespace, "activity", "schedule", name
        )
        observed.accessed(observer, allowed=allowed, caller=app, kind="activity", operation="schedule")
        return allowed

    def _changed(self) -> None:
        """Tell whether there is a worker; that the last one has gone, once it does not come back soon."""
        if self._going is not None:
            self._going.cancel()
            self._going = None
        if self.dispatch.has_worker:
            self._ready(ready=True)
        elif self._parts.streams.ending.is_set():
            self._ready(ready=False)
        else:
            gone = partial(self._ready, ready=False)
            self._going = asyncio.get_running_loop().call_later(BACK_SECONDS, gone)

    async def _share(self) -> None:
        """Share the limits that are those of all gateways together."""
        while True:
            limits = self._settings.turns, self._settings.tasks
            if any(each.shared is not None or each.names for each in limits):
                with suppress(MeshError):  # Then it stays as it was.
                    members = (await self._parts.owners.table(self._kind)).members.values()
                    ready = max(1, sum(each.standing is Standing.READY for each in members))
                    if ready != self._gateways:
                        self._gateways = ready
                        self._limit()
            await asyncio.sleep(SHARE_SECONDS)

    def _observe(self, ref: Ref, before: State | None, step: Step, instance: Instance) -> None:
        """Tell observers of what has begun, or ended."""
        parts, now = self._parts, step.state
        started = instance.started
        new = before is None or before.generation != now.generation
        if now.started is not None and (new or before is None or before.started is None):
            observed.began(parts.observer, now, None if started is None else started.scheduled)
        trace = None if started is None else started.trace
        if before is not None and new and before.ended is None:
            again = replace(before, status=Status.CONTINUED_AS_NEW, updated=now.updated)
            observed.ended(parts.observer, parts.tracing, ref.id, again, trace)
        if now.ended is not None and (new or before is None or before.ended is None):
            observed.ended(parts.observer, parts.tracing, ref.id, now, trace)


class _Observed:
    """A worker, of which observers are told what it does; see `mesh.workflows.worker.Worker`."""

    def __init__(self, parts: Parts, worker: Worker) -> None:
        self._parts, self._worker = parts, worker
        self.title, self.ended = worker.title, worker.ended
        self.max_turns, self.max_tasks = worker.max_turns, worker.max_tasks
        self.runs_workflow, self.runs_activity, self.knows = worker.runs_workflow, worker.runs_activity, worker.knows

    async def turn(self, work: TurnWork) -> Answer:
        began, outcome = time.perf_counter(), observed.RECOVERABLE
        passing = observed.turning(work) if self._parts.taps.on else None
        try:
            answer = await self._worker.turn(work)
            outcome = observed.SUCCESS
            if passing is not None:
                observed.noted(passing, answer)
        finally:
            observed.turned(self._parts.observer, work.name, outcome, time.perf_counter() - began)
            if passing is not None:
                passing.ends(outcome)
                self._parts.taps.tell(passing)
        return answer

    async def task(self, work: TaskWork) -> TaskResult:
        passing = observed.tasking(work) if self._parts.taps.on else None
        try:
            with observed.RunningTask(self._parts.observer, self._parts.tracing, work) as running:
                work.trace = running.trace
                result = await self._worker.task(work)
                running.came(result)
                if passing is not None:
                    observed.noted(passing, result)
        finally:
            if passing is not None:
                passing.ends(passing.outcome or observed.RECOVERABLE)
                self._parts.taps.tell(passing)
        return result
