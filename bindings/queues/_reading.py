"""The life of what reads a source, and events that are handed over until they are taken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from mesh.blocks.binding_contract import BindingEvent, Reading
from mesh.errors import MeshError
from mesh.tasks import task_group

__all__ = ["Work", "first_error", "growing", "handed", "reading_by", "stopped_within"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

Work = Callable[[asyncio.Event, asyncio.Event], Awaitable[None]]
"""Reads a source: has the first event set while it is connected, and returns when the second one is set."""


@asynccontextmanager
async def reading_by(work: Work, within: float | None = None) -> AsyncIterator[None]:
    """Have a source read while this is entered.

    Left, the work is told to stop, and waited for; where it fails or this is cancelled, it is cancelled.

    Args:
        work: Does it.
        within: Seconds after which this is entered although the work is not connected; None = never.
    """
    connected, stopping = asyncio.Event(), asyncio.Event()
    async with task_group() as tasks:
        working = tasks.create_task(_run(work, connected, stopping), name="binding-read")
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await connected.wait()
        try:
            yield
        finally:
            stopping.set()
        while connected.is_set() and not working.done():  # What lost its connection, or its turn, waits in vain.
            await asyncio.wait([working], timeout=LOOK_SECONDS)
        working.cancel()


async def _run(work: Work, connected: asyncio.Event, stopping: asyncio.Event) -> None:
    await work(connected, stopping)


@contextmanager
def first_error() -> Iterator[None]:
    """Raise the first of several errors: tasks that stand on one connection fail together."""
    try:
        yield
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__


def growing(first: float, longest: float, count: int | None = None) -> Iterator[float]:
    """Give the seconds before each further attempt; None = without end."""
    made = 0
    while count is None or made < count:
        yield first
        first = min(first * 2, longest)
        made += 1


async def stopped_within(stopping: asyncio.Event, seconds: float) -> bool:
    """Wait, and tell whether it was cut short."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()
    return stopping.is_set()


async def handed(
    reading: Reading,
    event: BindingEvent,
    stopping: asyncio.Event,
    waits: Iterator[float],
    passed_over: Callable[[MeshError], bool] = lambda error: False,
) -> bool:
    """Hand an event over until it is taken, or passed over; False = it is not done with.

    Args:
        reading: For whom.
        event: The event.
        stopping: Set when there shall be no further attempt.
        waits: Seconds before each further attempt; when they end, so do the attempts.
        passed_over: Whether it is done with although it was not taken.
    """
    while True:
        try:
            await reading.handle(event)
        except MeshError as error:
            if passed_over(error):
                logger.warning("binding %s: an event is passed over: %s", reading.component, error)
                return True
            wait = next(waits, None)
            if wait is None:
                logger.warning("binding %s: an event was not taken: %s", reading.component, error)
                return False
            logger.debug("binding %s: an event was not taken yet: %s", reading.component, error)
            if await stopped_within(stopping, wait):
                return False
        else:
            return True
