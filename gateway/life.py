"""How a gateway is told to end, and how long what is in flight has then.

To drain is to take nothing more for the application, and finish what it was given. To stop is that, and then to end.
Between the two the application ends, by calls of its own that still work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from mesh.tasks import until_any

__all__ = ["Life"]

logger = logging.getLogger(__name__)


class Life:
    """The end of one gateway.

    Attributes:
        stopping: Set once it is told to stop.
        draining: Set once it is told to drain.
        drained: Set once that is done.
        forced: It is not to wait for anything.
        lost: It stops because its backbone is lost for good.
        told: Is called once it is told to stop.
    """

    def __init__(self, drain_seconds: float) -> None:
        """Begin.

        Args:
            drain_seconds: What is in flight may take at the end.
        """
        self.stopping = asyncio.Event()
        self.draining = asyncio.Event()
        self.drained = asyncio.Event()
        self.told: Callable[[], object] = lambda: None
        self.forced = False
        self.lost = False
        self._drain_seconds = drain_seconds
        self._drained_by: float | None = None
        self._outlives: float | None = None

    async def until_lost(self) -> str:
        """Wait until its backbone is lost for good; give why."""
        raise NotImplementedError

    def until_unhealthy(self) -> asyncio.Event | None:
        """Give what is set once the application is unhealthy; None = nobody looks."""
        raise NotImplementedError

    def shut_down(self, *, force: bool = False) -> None:
        """Begin to stop; twice, or with force, stops without waiting."""
        if force or self.stopping.is_set():
            self.forced = True
        if not self.stopping.is_set():
            self._drained_by = None  # Whatever an earlier drain took.
            self.stopping.set()
            self.told()

    def drain(self, seconds: float | None = None) -> None:
        """Take nothing more for the application; what it calls itself works until it is told to stop.

        Args:
            seconds: Then it stops by itself, or before, once the application is unhealthy; None = it does not.
        """
        if not self.draining.is_set():
            self._outlives = seconds
            self.draining.set()

    def grace(self) -> float:
        """Give the seconds left for what is in flight: one time for deliveries, calls and open requests together."""
        now = asyncio.get_running_loop().time()
        if self._drained_by is None:
            self._drained_by = now + self._drain_seconds
        return 0.0 if self.forced else max(0.0, self._drained_by - now)

    async def until_ending(self) -> None:
        """Wait until it is told to stop or to drain, or has lost its backbone for good."""
        await self._until(self.stopping, self.draining)

    async def _until(self, *events: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            losing = tasks.create_task(self._note_loss(), name="gateway-note-loss")
            await until_any(*events)
            losing.cancel()

    async def outlive(self) -> None:
        """Once it has drained: let the application end, which may need its gateway for that; see `drain`."""
        if not self.draining.is_set():
            return
        unhealthy = None if self._outlives is None else self.until_unhealthy()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._outlives):
                await self._until(self.stopping, *([] if unhealthy is None else [unhealthy]))
        if not self.stopping.is_set():
            self.shut_down()

    async def _note_loss(self) -> None:
        reason = await self.until_lost()
        logger.error("%s; a restart may help", reason)
        self.lost = True
        self.shut_down()
