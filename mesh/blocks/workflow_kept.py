"""What a node that hosts workflows of its application has at work: engine, store, dispatch, and what is for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from mesh.workflows.committing import Committer
from mesh.workflows.dispatch import Dispatch
from mesh.workflows.engine import Engine
from mesh.workflows.operations import OperationsWorker
from mesh.workflows.remote import KIND, Remote
from mesh.workflows.room import Level, Limits

if TYPE_CHECKING:
    from mesh.blocks.block import Parts
    from mesh.store import StateStore
    from mesh.workflows.contracts import Deliver

__all__ = ["WorkflowsKept"]

BACK_SECONDS = 2.0  # A worker that is back within that has not been away: nothing moves to other nodes.


class WorkflowsKept:
    """The engine and all that it works with, at work while ``run`` is entered.

    Attributes:
        keeper: The engine.
        dispatch: What workers are attached to.
    """

    def __init__(
        self, parts: Parts, live: StateStore, ended: StateStore, deliver: Deliver, ready: Callable[..., None]
    ) -> None:
        """Prepare.

        Args:
            parts: The node's.
            live: Has the instances.
            ended: Has those that were put away.
            deliver: Tells other instances.
            ready: Is told whether there is a worker.
        """
        self._parts, self._ready = parts, ready
        self._going: asyncio.TimerHandle | None = None
        app, kind = parts.caller.app_id, KIND + parts.caller.app_id
        self._remote = Remote(parts.exchange, parts.owners, parts.caller, partial(_allows, parts))
        self.dispatch = Dispatch(app, self._remote, Limits(), self._changed)
        self._committer = Committer(kind, live, ended)
        self.keeper = Engine(app, self._committer, self.dispatch, deliver, self._sure)

    def _sure(self, partition: int) -> bool:
        return self._parts.owners.epoch(KIND + self._parts.caller.app_id, partition) is not None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Be at work; what is owned is to be handed over before it is left."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._committer.run())
            await stack.enter_async_context(self.dispatch.run(self.keeper))
            await stack.enter_async_context(self.keeper.run())
            operations = OperationsWorker(self._parts.run, self._parts.caller)
            await stack.enter_async_context(self.dispatch.attach(operations, Level.OPERATIONS))
            await stack.enter_async_context(self._remote.serve(self.dispatch.run_for))
            try:
                yield
            finally:
                if self._going is not None:
                    self._going.cancel()

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
            self._going = asyncio.get_running_loop().call_later(BACK_SECONDS, partial(self._ready, ready=False))


def _allows(parts: Parts, app: str, name: str) -> bool:
    """Ask this node's rules about another application of its namespace."""
    own = parts.caller
    return parts.workflow_access.allows(app, own.namespace, own.app_id, own.namespace, "activity", "schedule", name)
