"""Clients' connections from one worker to another, by their descriptors: the kernel's own way between processes.

The kernel divides new connections by a hash, so that an application with a few of them may have all at one worker: a
worker that has more than another passes a new one on before it reads from it. And a worker that is replaced passes on
what its clients keep open and is idle, so that no client finds a connection closed on which it has just asked.
How many each worker has stands in memory that all of them share; it is a hint, and nothing depends on its being exact.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

from gateway.descriptors import counts_of, receive, send
from gateway.http.loading import hand_over
from mesh.tasks import task_group

__all__ = ["Passing"]

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
AGAIN = "again "
"""Before the name of a connection that the worker could not take which got it first."""
Make = Callable[[], asyncio.Protocol]


class Passing:
    """What one worker passes on and is passed.

    Attributes:
        replaced: Whether another worker takes this one's place.
    """

    def __init__(self, slot: int, end: socket.socket, counts: int) -> None:
        """Use what the parent has given.

        Args:
            slot: The place of this worker.
            end: Of a socket to the parent.
            counts: Descriptor of the memory with the connections of each worker.
        """
        self.replaced = False
        self._slot, self._end = slot, end
        self._counts = counts_of(counts)
        self._takes: dict[str, Make] = {}
        self._alive: dict[str, Callable[[], int]] = {}
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def running(self, workers: int) -> AsyncIterator[None]:
        """Take what is passed while entered.

        Args:
            workers: How many there are.
        """
        self._others = [slot for slot in range(workers) if slot != self._slot]
        loop = asyncio.get_running_loop()
        self._end.setblocking(False)
        loop.add_reader(self._end.fileno(), self._receive)
        async with task_group() as self._tasks:
            refreshing = self._tasks.create_task(self._refresh(), name="workers-counts")
            try:
                yield
            finally:
                refreshing.cancel()
                loop.remove_reader(self._end.fileno())
                self._end.close()

    @asynccontextmanager
    async def entrance(self, name: str, make: Make, alive: Callable[[], int]) -> AsyncIterator[Make]:
        """Give what serves new connections in place of another: one too many goes to another worker.

        Args:
            name: The same in all workers.
            make: Serves those that stay, and those that are passed to this one.
            alive: Gives how many there are.
        """
        self._takes[name], self._alive[name] = make, alive
        try:
            yield partial(_Arrival, self, name)
        finally:
            del self._takes[name], self._alive[name]

    def leaving(self, name: str) -> Callable[[int], bool] | None:
        """Give what passes on a connection that is idle, by its descriptor; None = nobody takes it."""
        return partial(send, self._end, name) if self.replaced else None

    def too_many(self, name: str) -> bool:
        """Tell whether another worker should have the connection that has just come to this one."""
        own = self._counts[self._slot] = self._count() + 1
        least = min((self._counts[slot] for slot in self._others), default=own)
        return least + 1 < own and name in self._takes

    def pass_new(self, name: str, descriptor: int) -> bool:
        """Pass on a connection that has just come."""
        sent = send(self._end, name, descriptor)
        if sent:
            self._counts[self._slot] -= 1
        return sent

    def serve(self, name: str) -> asyncio.Protocol:
        """Make what serves a connection here."""
        return self._takes[name]()

    def _count(self) -> int:
        return sum(alive() for alive in self._alive.values())

    async def _refresh(self) -> None:
        while True:
            if self._alive and not self.replaced:
                self._counts[self._slot] = self._count()
            await asyncio.sleep(REFRESH_SECONDS)

    def _receive(self) -> None:
        for name, descriptor in receive(self._end):
            make = self._takes.get(name.removeprefix(AGAIN))
            if make is None:  # This worker is leaving, or without its gateway for a moment.
                if not name.startswith(AGAIN):  # Once: perhaps all are, and it would go round.
                    send(self._end, f"{AGAIN}{name}", descriptor)
                os.close(descriptor)
                continue
            made = socket.socket(fileno=descriptor)
            self._tasks.create_task(self._take(make, made), name="workers-take")

    async def _take(self, make: Make, made: socket.socket) -> None:
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(make, made)
        except OSError as error:
            logger.debug("a connection that was passed on is gone: %s", error)
            made.close()


class _Arrival(asyncio.Protocol):
    """A new connection, until it is decided who serves it."""

    def __init__(self, passing: Passing, name: str) -> None:
        self._passing, self._name = passing, name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        opened = cast("asyncio.Transport", transport)
        if self._passing.too_many(self._name):
            descriptor = opened.get_extra_info("socket").fileno()
            if self._passing.pass_new(self._name, descriptor):
                opened.abort()  # It is another process's now; here it is only forgotten.
                return
        hand_over(opened, self._passing.serve(self._name), b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take no notice: whoever has it now is told."""
