"""Attempts at a service that many requests wait for: one at a time, in a task of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from mesh.middleware import MiddlewareError

__all__ = ["Attempts"]

logger = logging.getLogger(__name__)

SECONDS = 10.0
_Got = TypeVar("_Got")


class Attempts(Generic[_Got]):
    """Makes one attempt at a time, and gives all who wait what it came to; nobody's patience ends it for others."""

    def __init__(
        self,
        failing: str,
        tasks: asyncio.TaskGroup,
        make: Callable[[], Awaitable[_Got]],
        *,
        done: float = 0.0,
        failed: float = 1.0,
    ) -> None:
        """Prepare.

        Args:
            failing: What the log says of one that failed.
            tasks: Of the adapter.
            make: Makes one; what it raises is what who waits is told.
            done: Seconds for which one that worked counts before there is another.
            failed: The same of one that failed.
        """
        self._failing, self._tasks, self._make = failing, tasks, make
        self._seconds = {True: done, False: failed}
        self._last: asyncio.Task[_Got | MiddlewareError] | None = None
        self._next_at = -math.inf
        self._failed = False

    def begin(self) -> None:
        """Begin one, unless one runs or counts yet; this does not wait for it."""
        self._last = self._begun()

    def _begun(self) -> asyncio.Task[_Got | MiddlewareError]:
        if self._last is None or (self._last.done() and time.monotonic() >= self._next_at):
            self._last = self._tasks.create_task(self._run(), name="middleware-attempt")
        return self._last

    async def wait(self) -> _Got:
        """Wait for the one that runs or counts yet, or for one more.

        Raises:
            MiddlewareError: It failed.
        """
        task = self._begun()
        await asyncio.wait([task])
        found = MiddlewareError("the middleware is closed") if task.cancelled() else task.result()
        if isinstance(found, MiddlewareError):
            raise MiddlewareError(str(found))
        return found

    def cancel(self) -> None:
        """End the one that runs."""
        if self._last is not None:
            self._last.cancel()

    async def _run(self) -> _Got | MiddlewareError:
        found: _Got | MiddlewareError
        try:
            async with asyncio.timeout(SECONDS):
                found = await self._make()
        except MiddlewareError as error:
            found = error
        except TimeoutError:
            found = MiddlewareError(f"no answer within {SECONDS:g} s")
        except Exception as error:  # It would end the adapter's other tasks.
            logger.exception("%s", self._failing)
            found = MiddlewareError(f"it failed: {type(error).__name__}")
        worked = not isinstance(found, MiddlewareError)
        if worked == self._failed:  # The log has a line for each change: who waits asks once a second.
            level, text = (logging.INFO, "that is over") if worked else (logging.WARNING, found)
            logger.log(level, "%s: %s", self._failing, text)
        self._failed = not worked
        self._next_at = time.monotonic() + self._seconds[worked]
        return found
