"""Turns: what only one node of the mesh does at a time, for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mesh.errors import MeshError
from mesh.tasks import task_group, until_any

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = ["in_turn"]

logger = logging.getLogger(__name__)


class _LostTurnError(Exception):
    """Somebody else may have it, now or soon."""


async def in_turn(owners: Owners, key: str, work: Callable[[], Awaitable[None]], ending: asyncio.Event) -> None:
    """Do some work while nobody else does it: wait for the turn, and again whenever it was lost.

    Whoever has begun keeps the turn until the work ends, whoever comes. It is lost with the session of this node, which
    could not be renewed for two thirds of its ten seconds: then the work is cancelled, three seconds before somebody
    else gets the turn. Only a process that stood still for longer may go on beside them for a moment. Whoever is killed
    keeps the turn for 12 seconds at most; whoever leaves gives it back.

    Args:
        owners: Of this node.
        key: What the turn is for.
        work: Done from its beginning each time; when it returns or raises, that is the end.
        ending: Set when the turn is not waited for any more; the work looks for itself.

    Raises:
        MeshError: What the work raised, or the mesh has no place for its records.
    """
    kind, turn = f"turn.{key}", _Turn()
    try:
        await owners.table(kind)
    except MeshError as error:
        if not error.retryable:
            raise
        logger.warning("the turn for %s is waited for: %s", key, error)
    async with owners.single(kind, turn, ending, lasts=False):
        while True:
            await until_any(turn.given, ending)
            if ending.is_set() or await turn.done(work):
                return
            logger.info("the turn for %s was lost, and is waited for", key)


class _Turn:
    """A keeper (``mesh/ownership``), which hands over nothing in the middle.

    Attributes:
        given: Set while this node has the turn.
    """

    def __init__(self) -> None:
        self.given = asyncio.Event()
        self._lost, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()

    def take(self, partition: int, epoch: int) -> None:
        """Begin."""
        self._lost.clear()
        self.given.set()

    async def leave(self, partition: int) -> None:
        """Wait for the end of the work."""
        await self._idle.wait()
        self.given.clear()

    def drop(self, partition: int) -> None:
        """End at once."""
        self.given.clear()
        self._lost.set()

    async def done(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do the work; tells whether it has ended, and not the turn."""
        if not self.given.is_set():  # It was handed over before the work began.
            return False
        self._idle.clear()
        try:
            async with task_group() as tasks:
                losing = tasks.create_task(self._lose(), name="turn-lose")
                await work()
                losing.cancel()
        except _LostTurnError:
            return False
        except BaseExceptionGroup as group:  # The work may fail as it is cut off: a connection that cannot be left.
            if group.subgroup(_LostTurnError) is None:
                raise
            logger.debug("what was cut off has failed as well: %s", group.exceptions)
            return False
        finally:
            self._idle.set()
        return True

    async def _lose(self) -> None:
        await self._lost.wait()
        raise _LostTurnError
