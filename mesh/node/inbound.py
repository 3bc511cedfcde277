"""The application's side of a node: serve and subscribe while the application is there.

Every block gives what it holds open towards the application (`Serving.inbound`). All of it is entered before the
application counts as served; at the end all stop fetching before any has drained.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from mesh.application import Application
from mesh.blocks.block import Inbound, Serving
from mesh.errors import MeshError
from mesh.node.directory import Directory
from mesh.resources.subscription import Subscription
from mesh.tasks import task_group

__all__ = ["Serve", "inbound"]

logger = logging.getLogger(__name__)

SESSION_RETRY = 1.0

Programmatic = Callable[[], Awaitable[Sequence[Subscription]]]


@dataclass(slots=True)
class Serve:
    """Whether the application is served now."""

    serving: bool = False


@asynccontextmanager
async def inbound(
    serve: Serve,
    services: Sequence[Serving],
    directory: Directory,
    app_id: str,
    application: Application,
    programmatic: Programmatic,
) -> AsyncIterator[None]:
    """Serve the application whenever it is there; see ``Runtime.inbound``."""
    supervisor = _Supervisor(serve, services, directory, app_id, application, programmatic)
    directory.host(app_id, ready=False)
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        supervising = tasks.create_task(supervisor.supervise(stopping), name="inbound-supervise")
        try:
            yield
        finally:
            stopping.set()
            try:
                await asyncio.shield(asyncio.wait([supervising]))
            except asyncio.CancelledError:
                supervising.cancel()
                raise


@dataclass(frozen=True, slots=True)
class _Supervisor:
    serve: Serve
    services: Sequence[Serving]
    directory: Directory
    app_id: str
    application: Application
    programmatic: Programmatic

    async def supervise(self, stopping: asyncio.Event) -> None:
        """Open a session when the application comes, end it when it goes."""
        while await _first(stopping.wait(), self.application.until_reachable()):
            async with asyncio.TaskGroup() as tasks:
                ended = asyncio.Event()
                session = tasks.create_task(self._sessions(ended), name="inbound-session")
                if await _first(stopping.wait(), self.application.until_unreachable(), asyncio.wait([session])):
                    # Deliveries in flight go to other instances at once: this one's application is not there.
                    session.cancel()
                else:
                    ended.set()

    async def _sessions(self, ended: asyncio.Event) -> None:
        """Keep a session open; one that a broker's failure ends is opened again."""
        while not ended.is_set():
            try:
                await self._session(ended)
            except* MeshError as group:
                logger.warning("cannot serve the application, trying again: %s", group.exceptions[0])
                await asyncio.sleep(SESSION_RETRY)

    async def _session(self, ended: asyncio.Event) -> None:
        there = Inbound(self.application, await self.programmatic())
        async with task_group() as tasks:
            contexts = [context for service in self.services for context in await service.inbound(there)]
            # All at once: to join a group takes seconds on some brokers.
            for entered in [_hold(tasks, context, ended) for context in contexts]:
                await entered.wait()
            self.directory.host(self.app_id, ready=True)
            self.serve.serving = True
            try:
                await ended.wait()
            finally:
                self.serve.serving = False
                self.directory.host(self.app_id, ready=False)


def _hold(tasks: asyncio.TaskGroup, context: AbstractAsyncContextManager[None], ended: asyncio.Event) -> asyncio.Event:
    """Enter it in a task of its own that leaves it at the end, so that all stop fetching before any has drained.

    Returns:
        What is set once it is entered.
    """
    entered = asyncio.Event()

    async def hold() -> None:
        async with context:
            entered.set()
            await ended.wait()

    tasks.create_task(hold(), name="inbound-hold")
    return entered


async def _first(stop: Awaitable[object], *others: Awaitable[object]) -> bool:
    """Wait for any; tell whether it was another one than ``stop``."""
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(_await(each), name="inbound-wait") for each in (stop, *others)]
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
    return waiting[0] not in done


async def _await(what: Awaitable[object]) -> None:
    await what
