"""Reads a queue that is asked for messages, and holds them back from others while they are handled."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from bindings.queues._reading import growing, reading_by, stopped_within
from mesh.blocks.binding_contract import BindingEvent, Reading
from mesh.errors import MeshError
from mesh.tasks import task_group

__all__ = ["AT_ONCE", "Polled", "polling"]

logger = logging.getLogger(__name__)

AT_ONCE = 10
LEAVE_SECONDS = 2.0  # For a request that may bring messages; one that waits for some is given up.
AGAIN_SECONDS, LONGEST_WAIT = 1.0, 15.0
SETTLE_SECONDS, SETTLE_AGAIN = 0.5, 3
_M = TypeVar("_M")


class Polled(Protocol[_M]):
    """A queue, for one application.

    What is asked of it raises a ``MeshError``, ``retryable`` where it is asked again.

    Attributes:
        idle_seconds: How long nothing is asked for after there was nothing.
        hold_seconds: How often a message that is handled is held back anew.
        at_once: How many messages are handled at once.
    """

    idle_seconds: float
    hold_seconds: float
    at_once: int

    async def fetch(self, most: int) -> Sequence[_M]:
        """Ask for messages, which are then held back; may wait for some."""

    def group(self, message: _M) -> object:
        """Tell which of the messages that came together are in one order."""

    def event(self, message: _M) -> BindingEvent:
        """Read a message."""

    async def hold(self, message: _M) -> None:
        """Hold it back anew."""

    async def done(self, message: _M) -> None:
        """Take it out of the queue."""

    async def again(self, message: _M, *, refused: bool) -> None:
        """Have it come again: later where it was refused, now where it was not handed over."""


@asynccontextmanager
async def polling(source: Polled[_M], reading: Reading) -> AsyncIterator[None]:
    """Hand messages over while this is entered."""
    async with reading_by(_Reader(source, reading).run):
        yield


class _Reader(Generic[_M]):
    def __init__(self, source: Polled[_M], reading: Reading) -> None:
        self._source, self._reading = source, reading
        self._taking: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Event

    async def run(self, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        """Take messages as they come, and those of one group one after the other."""
        self._stopping = stopping
        connected.set()
        async with task_group() as tasks:
            while not stopping.is_set():
                if len(self._taking) >= self._source.at_once:
                    await asyncio.wait(self._taking, return_when=asyncio.FIRST_COMPLETED)
                    continue
                found = await self._fetched(tasks)
                groups: dict[object, deque[_M]] = {}
                for message in found:
                    groups.setdefault(self._source.group(message), deque()).append(message)
                for messages in groups.values():
                    task = tasks.create_task(self._take(messages), name="polled-take")
                    self._taking.add(task)
                    task.add_done_callback(self._taking.discard)
                if not found:
                    await stopped_within(stopping, self._source.idle_seconds)

    async def _fetched(self, tasks: asyncio.TaskGroup) -> Sequence[_M]:
        """Ask until there is an answer, or this is left."""
        told, waits = "", growing(AGAIN_SECONDS, LONGEST_WAIT)
        while not self._stopping.is_set():
            try:
                return await self._asked(tasks)
            except MeshError as error:
                if not error.retryable:
                    raise
                if str(error) != told:
                    logger.warning("binding %s: asking again: %s", self._reading.component, error)
                told = str(error)
            await stopped_within(self._stopping, next(waits))
        return ()

    async def _asked(self, tasks: asyncio.TaskGroup) -> Sequence[_M]:
        """Ask once; a request that waits when this is left is cancelled."""
        most = self._source.at_once - len(self._taking)

        async def ask() -> Sequence[_M] | MeshError:
            try:
                return await self._source.fetch(most)
            except MeshError as error:  # Raised in a task of the group it would end the group.
                return error

        asking = tasks.create_task(ask(), name="polled-ask")
        left = tasks.create_task(self._stopping.wait(), name="polled-left")
        await asyncio.wait((asking, left), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not asking.done():
            await asyncio.wait((asking,), timeout=LEAVE_SECONDS)
            asking.cancel()
            await asyncio.wait((asking,))
        if asking.cancelled():
            return ()
        found = asking.result()
        if isinstance(found, MeshError):
            raise found
        return found

    async def _take(self, left: deque[_M]) -> None:
        """Hand messages over; those behind one that is not taken come again as well."""
        finished, one, refused = asyncio.Event(), asyncio.Lock(), False
        async with task_group() as tasks:
            tasks.create_task(self._hold(left, finished, one), name="polled-hold")
            try:
                while left and not self._stopping.is_set():
                    await self._reading.handle(self._source.event(left[0]))
                    async with one:
                        await self._done(left.popleft())
            except MeshError as error:
                refused = True
                logger.info("binding %s: a message comes again: %s", self._reading.component, error)
            finished.set()
        for message in left:
            try:
                await self._source.again(message, refused=refused)
            except MeshError as error:  # Then it comes when it is no longer held back.
                logger.debug("binding %s: %s", self._reading.component, error)

    async def _hold(self, left: deque[_M], finished: asyncio.Event, one: asyncio.Lock) -> None:
        """Hold messages back anew; what is being held back is not settled meanwhile: its receipt may become another."""
        while not await stopped_within(finished, self._source.hold_seconds):
            for message in tuple(left):
                async with one:
                    if not any(each is message for each in left):
                        continue
                    try:
                        await self._source.hold(message)
                    except MeshError as error:
                        logger.debug("binding %s: %s", self._reading.component, error)

    async def _done(self, message: _M) -> None:
        waits = growing(SETTLE_SECONDS, LONGEST_WAIT, SETTLE_AGAIN)
        while True:
            try:
                return await self._source.done(message)
            except MeshError as error:
                wait = next(waits, None) if error.retryable else None
                if wait is None:
                    logger.warning(
                        "binding %s: a message that was taken may come again: %s", self._reading.component, error
                    )
                    return None
            await asyncio.sleep(wait)
