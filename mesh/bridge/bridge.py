"""A bridge at work: both directions of it, and what changes when its lists do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import cast

from mesh.bridge.carried import Carried
from mesh.bridge.durable import Queue
from mesh.bridge.routes import Routes, TopicRoute
from mesh.bridge.side import Side
from mesh.errors import MeshError
from mesh.tasks import only_error, task_group, until_any

__all__ = ["Bridge"]

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0
Opening = Callable[[], AbstractAsyncContextManager[Sequence[asyncio.Event] | None]]


class _Held:
    """Something that is held open: again when it fails, or what it depends on is another one.

    Attributes:
        ended: Set when it is not wanted any more.
        tried: Set once it is open, or could not be opened at first.
        problem: Why it is not open; empty when it is.
    """

    task: asyncio.Task[None]

    def __init__(self, name: str, opening: Opening, stopping: asyncio.Event) -> None:
        self.ended, self.tried = asyncio.Event(), asyncio.Event()
        self.problem = ""
        self._name, self._opening, self._stopping = name, opening, stopping

    async def run(self) -> None:
        wait = FIRST_WAIT
        over = self.ended, self._stopping
        while not any(each.is_set() for each in over):
            try:
                with only_error():
                    async with self._opening() as others:
                        if self.problem:
                            logger.info("the bridge carries %s again", self._name)
                        self.problem, wait = "", FIRST_WAIT
                        self.tried.set()
                        await until_any(*over, *(others or ()))
            except MeshError as error:
                if str(error) != self.problem:
                    logger.warning("the bridge does not carry %s, trying again: %s", self._name, error)
                self.problem = str(error)
                self.tried.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await until_any(*over)
                wait = min(wait * 2, LONGEST_WAIT)


class Bridge:
    """Joins two sides."""

    def __init__(self, one: Side, other: Side, routes: Routes) -> None:
        """Use sides whose nodes are entered.

        Args:
            one: A side.
            other: The other one.
            routes: What is carried, both ways.
        """
        self._sides = {one.cluster: one, other.cluster: other}
        self._pairs = (one, other), (other, one)
        self._routes = routes
        self._stopping = asyncio.Event()
        self._held: dict[str, _Held] = {}
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry while entered; leaving finishes what is in flight, and hands back what waits for the other side.

        Entered, it carries all that can be: where topics keep nothing for groups that are yet to come, what was
        published before is not.
        """
        async with task_group() as self._tasks:
            watching = [
                self._tasks.create_task(here.watch(lambda there=there: there.cluster), name="bridge-watch")  # type: ignore[misc]  # it is bound
                for here, there in self._pairs
            ]
            for here, there in self._pairs:
                calls, queue = self._directed(here, there)
                self._hold(f"calls from {here.cluster}", calls)
                self._hold(f"durable calls and outcomes from {here.cluster}", queue)
            self.apply(self._routes)
            try:
                for each in list(self._held.values()):
                    await each.tried.wait()
                yield
            finally:
                self._stopping.set()
                for each in self._held.values():
                    await asyncio.wait([each.task])
                for task in watching:
                    task.cancel()

    def _directed(self, here: Side, there: Side) -> tuple[Opening, Opening]:
        def routes() -> Routes:
            return self._routes

        carried = Carried(here, there, routes)
        queue = Queue(here, there, routes, self._stopping)
        return carried.serving, queue.running

    def _hold(self, name: str, opening: Opening) -> None:
        held = self._held[name] = _Held(name, opening, self._stopping)
        held.task = self._tasks.create_task(held.run(), name="bridge-hold")

    def apply(self, routes: Routes) -> None:
        """Carry by other lists from here on; topics that stay are left as they are."""
        former = {_name(each): each for each in self._routes.topics}
        wanted = {_name(each): each for each in routes.topics}
        self._routes = routes
        for name in former.keys() - wanted.keys():
            if name in self._held:
                self._held.pop(name).ended.set()
        for name, route in wanted.items():
            if name not in self._held:
                self._hold(name, self._forwarding(route))

    def _forwarding(self, route: TopicRoute) -> Opening:
        from mesh.bridge.topics import Forwarding

        here = self._sides[route.cluster]
        there = next(each for each in self._sides.values() if each is not here)
        return cast("Opening", Forwarding(route, here, there, self._stopping).running)

    def described(self) -> Mapping[str, object]:
        """Tell how it is, for metadata."""
        problems = {name: each.problem for name, each in self._held.items() if each.problem}
        return {
            "sides": [each.described() for each in self._sides.values()],
            "apps": list(self._routes.apps),
            "topics": [each.described for each in self._routes.topics],
            "problems": [f"{name}: {problem}" for name, problem in problems.items()],
        }


def _name(route: TopicRoute) -> str:
    return f"the topic {route}, to {route.to_component}/{route.to_topic}"
