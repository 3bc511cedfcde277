"""The application's side of a node: serve and subscribe while the application is there.

Every block gives what it holds open towards the application (`Serving.inbound`). All of it is entered before the
application counts as served; at the end all stop fetching before any has drained. When resources have changed, the
blocks are asked again, and only what would be made of something else is left and entered anew. What cannot be entered
while a broker is away is tried again, and disturbs nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mesh.application import Application
from mesh.blocks.block import Held, Inbound, Serving
from mesh.errors import MeshError
from mesh.node.directory import Directory
from mesh.resources.subscription import Subscription
from mesh.tasks import task_group

__all__ = ["Serve", "inbound"]

logger = logging.getLogger(__name__)

SESSION_RETRY = 1.0
LEAVE_SECONDS = 10.0

Programmatic = Callable[[], Awaitable[Sequence[Subscription]]]


@dataclass(slots=True)
class Serve:
    """Whether the application is served now, and who is told; ``changed`` is set when other things may be held."""

    serving: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    told: Callable[[bool], None] = lambda _: None


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
            holding = _Holding(tasks, self.serve)
            try:
                await self._hold(holding, there)
                while await _first(ended.wait(), self.serve.changed.wait()):
                    await self._hold(holding, there)
            finally:
                self.serve.serving = False
                self.serve.told(False)
                self.directory.host(self.app_id, ready=False)
                holding.end()

    async def _hold(self, holding: _Holding, there: Inbound) -> None:
        self.serve.changed.clear()
        complete = await holding.hold([each for service in self.services for each in await service.inbound(there)])
        if complete and not self.serve.serving:
            self.directory.host(self.app_id, ready=True)
            self.serve.serving = True
            self.serve.told(True)


class _Holding:
    """What is held now; each in a task of its own, so that at the end all stop fetching before any has drained."""

    def __init__(self, tasks: asyncio.TaskGroup, serve: Serve) -> None:
        self._tasks = tasks
        self._serve = serve
        self._held: dict[str, _Hold] = {}
        self._failed: dict[str, str] = {}
        self._again: asyncio.TimerHandle | None = None

    async def hold(self, wanted: Sequence[Held]) -> bool:
        """Hold this, and nothing else. What is not new is left as it is.

        Returns:
            Whether all of it is held; if not, ``Serve.changed`` is set a moment later.
        """
        told, self._failed = self._failed, {}
        new = [each for each in wanted if not self._has(each)]
        kept = {each.name for each in wanted} - {each.name for each in new}
        former = [hold for name, hold in self._held.items() if name not in kept]
        self._held = {name: hold for name, hold in self._held.items() if name in kept}
        await self._enter([each for each in new if each.overlaps])
        for hold in former:
            hold.ended.set()
        if former:
            # What the broker keeps comes to the next one: so no event is handed over twice, and order holds.
            _, late = await asyncio.wait([hold.task for hold in former], timeout=LEAVE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.wait([hold.task for hold in former])
        await self._enter([each for each in new if not each.overlaps])
        for name, text in self._failed.items():
            if told.get(name) != text:
                logger.warning("%s is not served, trying again: %s", name, text)
        self._cancel_again()
        if self._failed:
            self._again = asyncio.get_running_loop().call_later(SESSION_RETRY, self._serve.changed.set)
        return not self._failed

    def _cancel_again(self) -> None:
        if self._again is not None:
            self._again.cancel()

    def _has(self, wanted: Held) -> bool:
        hold = self._held.get(wanted.name)
        return hold is not None and hold.held.made_of == wanted.made_of

    async def _enter(self, wanted: Sequence[Held]) -> None:
        """Enter all at once: to join a group takes seconds on some brokers."""
        for each in wanted:
            self._held[each.name] = hold = _Hold(each)
            hold.task = self._tasks.create_task(hold.run(), name="inbound-hold")
        for each in wanted:
            hold = self._held[each.name]
            await hold.entered.wait()
            if hold.failed is not None:
                del self._held[each.name]
                self._failed[each.name] = str(hold.failed)

    def end(self) -> None:
        """Begin to leave everything."""
        self._cancel_again()
        for hold in self._held.values():
            hold.ended.set()


class _Hold:
    task: asyncio.Task[None]

    def __init__(self, held: Held) -> None:
        self.held = held
        self.entered, self.ended = asyncio.Event(), asyncio.Event()
        self.failed: Exception | None = None

    async def run(self) -> None:
        """Enter it, and leave it once it is ended; ``failed`` says why it could not be entered."""
        try:
            async with self.held.context:
                self.entered.set()
                await self.ended.wait()
        except* MeshError as group:
            if self.entered.is_set():
                raise
            self.failed = group.exceptions[0]
            self.entered.set()


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
